"""Recorded passes on a GPU against passes that are launched kernel by kernel, on small models of every kind.

    python benchmarks/cuda_graphs.py --json OUT     `benchmarks/gpu.sh verify` calls it
    python benchmarks/cuda_graphs.py --dry          does it run? smaller still, on a CPU, functions run again instead of replayed

Exit status 1 where losses or gradients differ by more than rounding, a recording could not be used, or a check failed; the
others are made all the same, and what is known by then is written after each.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from passes import TOY, about, trainer, write

from sleeptrain.execute.autograd import RecomputeName
from sleeptrain.execute.cuda_graphs import ROUNDING
from sleeptrain.execute.graph_capture import CudaGraphRecorder, EagerReplay, GraphRecorder
from sleeptrain.model.config import AttentionConfig, DeltaNetConfig, MlpConfig
from sleeptrain.model.language import LanguageModel
from sleeptrain.program import Evict, Gradient, Loop, Sleep

DRY = replace(TOY, layers="GAGA")
SMALL = replace(
    TOY,
    width=256,
    layers="GAGA",
    vocab=1024,
    attention=AttentionConfig(heads=4, kv_heads=2),
    deltanet=DeltaNetConfig(4, 4, 64),
    mlp=MlpConfig(512),
)
CHECKED: dict[str, tuple[Sleep, RecomputeName, bool]] = {
    "hard, every": (Sleep(128, 2, Loop(trigger="every")), "pass", False),
    "padded, last pass only": (Sleep(128, 3, Loop(trigger="every"), gradient=Gradient(passes=1)), "block", True),
    "sliding, range": (Sleep(128, 2, Loop((1, 3), trigger="every"), Evict("sliding")), "window", True),
    "normed, strict": (Sleep(128, 2, Loop(feedback="normed", trigger="every"), Evict(conv_carry=False)), "pass", False),
}
"""How the checked models sleep, what is kept, and whether rows are padded."""


def descend(model: LanguageModel) -> None:
    """So that no step has the weights of the one before."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.grad is not None:
                weight -= 0.01 * weight.grad / (1 + weight.grad.abs().max())


class Said(logging.Handler):
    """What was said of recordings that could not be used."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.lines.append(record.getMessage())


def check(name: str, dtype: torch.dtype, dry: bool) -> dict[str, Any]:
    """What `compare` finds, printed; that something fails is a finding too, and not ok."""
    said, log = Said(), logging.getLogger("sleeptrain")
    found: dict[str, Any] = {"name": name, "dtype": str(dtype), "ok": False, "said": said.lines}
    log.addHandler(said)
    try:
        found |= compare(name, dtype, dry)
    except Exception as error:
        found["failed"] = f"{type(error).__name__}: {error}"[:1000]
        words = f"failed: {found['failed']}"
    else:
        found["ok"] = found["apart"] <= ROUNDING[dtype] and found["replayed"] > 0 and not said.lines
        words = f"{found['replayed']} replays, furthest {found['apart']:.2g} apart"
    finally:
        log.removeHandler(said)
    print(f"{'ok' if found['ok'] else 'NOT OK'}: {name}, {dtype}: {words}", *said.lines, flush=True)
    return found


def compare(name: str, dtype: torch.dtype, dry: bool) -> dict[str, Any]:
    """Steps with recordings and without from the same weights, each step's weights being those of the ones without: how far
    losses and gradients are apart, relative, and how often a recording was used."""
    sleep, policy, padded = CHECKED[name]
    recorder: GraphRecorder = EagerReplay() if dry else CudaGraphRecorder()
    config, sleep = (DRY, replace(sleep, window=16)) if dry else (SMALL, sleep)
    device = torch.device("cpu" if dry else "cuda")
    one, other = (trainer(config, sleep, device, dtype, policy, made) for made in (None, recorder))
    one.padded = other.padded = padded
    apart = []
    for seed in range(4):
        losses = [one.step(seed), other.step(seed)]
        pairs = [
            losses,
            *([a.grad, b.grad] for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True)),
        ]
        apart += [float((b - a).double().norm() / a.double().norm().clamp_min(1e-30)) for a, b in pairs]
        descend(one.model)
        other.model.load_state_dict(one.model.state_dict())
    assert other.graph_cache is not None
    # max() passes over NaN, which must not count as near.
    worst = max(apart) if all(map(math.isfinite, apart)) else math.inf
    return {"apart": worst, "replayed": other.graph_cache.replayed}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results, hardware and versions there")
    parser.add_argument("--dry", action="store_true", help="on a CPU")
    arguments = parser.parse_args()
    report: dict[str, Any] = about(arguments.dry)
    cases: list[tuple[str, torch.dtype]] = []
    if torch.cuda.is_available() or arguments.dry:
        types = [torch.float32] if arguments.dry else [torch.float32, torch.bfloat16]
        cases = [(name, dtype) for name in CHECKED for dtype in types]
    else:
        print("no GPU run")
        write(arguments.json, report)
    for name, dtype in cases:
        report.setdefault("checks", []).append(check(name, dtype, arguments.dry))
        write(arguments.json, report)
    return 0 if all(found["ok"] for found in report.get("checks", [])) else 1


if __name__ == "__main__":
    sys.exit(main())
