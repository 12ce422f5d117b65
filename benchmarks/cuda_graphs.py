"""Passes replayed as CUDA graphs against eager passes, on small models with different sleep options; needs a GPU.

    python benchmarks/cuda_graphs.py --json OUT     `benchmarks/gpu.sh verify` calls it
    python benchmarks/cuda_graphs.py --dry          smaller models on a CPU, with eager replay instead of CUDA graphs

The exit status is 1 if losses or gradients differ by more than rounding, a graph could not be used, or a check raised an
error. A failed check does not stop the others; the report is written after each.
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
"""Sleep section, recompute policy and whether rows are padded, by name of the check."""


def descend(model: LanguageModel) -> None:
    """One step of gradient descent, so that every step has other weights."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.grad is not None:
                weight -= 0.01 * weight.grad / (1 + weight.grad.abs().max())


class Warnings(logging.Handler):
    """Collects the warnings about graphs that could not be used."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Collect one message."""
        self.lines.append(record.getMessage())


def check(name: str, dtype: torch.dtype, dry: bool) -> dict[str, Any]:
    """The result of `compare`, printed; an error counts as a failed check."""
    warnings, log = Warnings(), logging.getLogger("sleeptrain")
    result: dict[str, Any] = {"name": name, "dtype": str(dtype), "ok": False, "warnings": warnings.lines}
    log.addHandler(warnings)
    try:
        result |= compare(name, dtype, dry)
    except Exception as error:
        result["failed"] = f"{type(error).__name__}: {error}"[:1000]
        summary = f"failed: {result['failed']}"
    else:
        result["ok"] = result["difference"] <= ROUNDING[dtype] and result["replayed"] > 0 and not warnings.lines
        summary = f"{result['replayed']} replays, largest relative difference {result['difference']:.2g}"
    finally:
        log.removeHandler(warnings)
    print(f"{'ok' if result['ok'] else 'NOT OK'}: {name}, {dtype}: {summary}", *warnings.lines, flush=True)
    return result


def compare(name: str, dtype: torch.dtype, dry: bool) -> dict[str, Any]:
    """The largest relative difference of losses and gradients between steps with and without graphs, and the number of
    replays. Both start every step from the weights of the eager run."""
    sleep, policy, padded = CHECKED[name]
    recorder: GraphRecorder = EagerReplay() if dry else CudaGraphRecorder()
    config, sleep = (DRY, replace(sleep, window=16)) if dry else (SMALL, sleep)
    device = torch.device("cpu" if dry else "cuda")
    eager, graphed = (trainer(config, sleep, device, dtype, policy, r) for r in (None, recorder))
    eager.padded = graphed.padded = padded
    differences = []
    for seed in range(4):
        losses = [eager.step(seed), graphed.step(seed)]
        pairs = [
            losses,
            *([a.grad, b.grad] for a, b in zip(eager.model.parameters(), graphed.model.parameters(), strict=True)),
        ]
        differences += [float((b - a).double().norm() / a.double().norm().clamp_min(1e-30)) for a, b in pairs]
        descend(eager.model)
        graphed.model.load_state_dict(eager.model.state_dict())
    assert graphed.graph_cache is not None
    # max() may ignore NaN, which must count as a difference.
    worst = max(differences) if all(map(math.isfinite, differences)) else math.inf
    return {"difference": worst, "replayed": graphed.graph_cache.replayed}


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
    return 0 if all(result["ok"] for result in report.get("checks", [])) else 1


if __name__ == "__main__":
    sys.exit(main())
