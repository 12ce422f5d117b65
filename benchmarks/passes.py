"""A pass of a 1B hybrid on a GPU: launched kernel by kernel, compiled, recorded as CUDA graphs, and both.

    python benchmarks/passes.py --json OUT     milliseconds, tokens a second and MFU of `configs/hybrid-1b.yaml`
    python benchmarks/passes.py --dry          does it run? a toy on a CPU

`benchmarks/gpu.sh measure` calls it. A step is one row of four windows, all but the last with two passes,
forward and backward on the tape with `train.retain: pass`; no optimizer, no DeepSpeed. The time of a step is divided by its
passes. `launch` is how long the host takes to hand a pass to the device: what graphs are for. What is compiled are the
mixers, MLPs and norms of all blocks. MFU is of the data sheet's bf16 peak, passes counted, recomputing not. Without a GPU it
says "no GPU run".
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sleeptrain.model.config import Attention, DeltaNet, Mlp, Model
from sleeptrain.model.counts import parameters, step_flops
from sleeptrain.model.init import initialise
from sleeptrain.model.language import LanguageModel
from sleeptrain.parallel.recorders import CudaRecorder, Recorder, Rerun
from sleeptrain.parallel.replay import Replays
from sleeptrain.parallel.tape import Policy, Tape
from sleeptrain.parallel.units import Rows
from sleeptrain.program import Loop, Program, Sleep, Window, compile
from sleeptrain.recipe import load_recipe
from sleeptrain.train.setup import peak_of

VOCAB, WINDOWS = 32768, 4
MODES = {"eager": (False, False), "compiled": (True, False), "graphs": (False, True), "compiled, graphs": (True, True)}
"""Whether blocks are compiled, and whether passes are recorded."""
TOY = Model(
    width=32, layers="GA", vocab=50, attention=Attention(heads=2, kv_heads=1, head_dim=16), deltanet=DeltaNet(2, 2, 16),
    mlp=Mlp(48), tie=False,
)  # fmt: skip


@dataclass
class Trainer:
    """A model and what its steps need."""

    model: LanguageModel
    sleep: Sleep
    program: Program
    policy: Policy
    replays: Replays | None
    padded: bool = False

    def step(self, seed: int) -> Tensor:
        """Forward and backward of one row; the losses. Gradients are in the model."""
        device, length = next(self.model.parameters()).device, self.program.ops[-1].stop  # type: ignore[union-attr]
        drawn = torch.Generator().manual_seed(seed)
        tokens = torch.randint(self.model.config.vocab or 0, (1, length), generator=drawn).to(device)
        valid = torch.ones_like(tokens, dtype=torch.bool)
        valid[:, : 3 + seed % 5] = False
        rows = Rows(tokens, tokens, self.model.zero_state(self.sleep, 1), valid if self.padded else None)
        (result,) = Tape(self.model, [rows], self.program, self.sleep, self.policy, replays=self.replays).run()
        self.model.zero_grad()
        result.nll.sum().backward()
        return result.nll.detach()


def trainer(
    config: Model, sleep: Sleep, device: torch.device, dtype: torch.dtype, policy: Policy, recorder: Recorder | None
) -> Trainer:
    """A new model with the same weights each time, over windows that are all predicted."""
    model = LanguageModel(config).to(device)
    windows = [Window(i * sleep.window, (i + 1) * sleep.window, True) for i in range(WINDOWS)]
    initialise(model, 0, 2 * windows[-1].stop)
    replays = None if recorder is None else Replays(recorder, torch.float32)
    return Trainer(model.to(dtype), sleep, compile(sleep, windows, len(config.pattern)), policy, replays)


def measure(one: Trainer, steps: int, wait: Callable[[], None]) -> dict[str, float]:
    """Seconds of a step, the median, and of handing it to the device."""
    for seed in range(4):  # compile, record, check
        one.step(seed)
    wait()
    whole, handed = [], []
    for seed in range(steps):
        start = time.perf_counter()
        one.step(seed)
        handed.append(time.perf_counter() - start)
        wait()
        whole.append(time.perf_counter() - start)
    return {"step_s": statistics.median(whole), "launch_s": statistics.median(handed)}


def compare(config: Model, sleep: Sleep, dtype: torch.dtype, steps: int, dry: bool) -> dict[str, Any]:
    """Every mode on the same model."""
    device = torch.device("cpu" if dry else "cuda")
    rows: dict[str, Any] = {}
    for name, (compiled, recorded) in MODES.items():
        recorder: Recorder | None = (Rerun() if dry else CudaRecorder()) if recorded else None
        one = trainer(config, sleep, device, dtype, "pass", recorder)
        if compiled:
            torch._dynamo.reset()
            for block in one.model.layers:
                for part in (block.norm1, block.mixer, block.norm2, block.mlp):
                    part.compile(fullgraph=True, dynamic=False, backend="aot_eager" if dry else "inductor")
        try:
            found = measure(one, steps, (lambda: None) if dry else torch.cuda.synchronize)
        except Exception as error:  # that something cannot run here is a result, too
            rows[name] = {"failed": f"{type(error).__name__}: {error}"[:300]}
        else:
            rows[name] = found | rates(one, found["step_s"], "bf16" if dtype == torch.bfloat16 else "fp32")
            if not dry:
                rows[name]["peak_bytes"] = torch.cuda.max_memory_allocated()
                torch.cuda.reset_peak_memory_stats()
        print(f"{name:18}{shown(rows[name])}", flush=True)
        del one
        if not dry:
            torch.cuda.empty_cache()
    with torch.device("meta"):
        count = parameters(LanguageModel(config))["total"]
    return {"parameters": count, "window": sleep.window, "windows": WINDOWS, "modes": rows}


def rates(one: Trainer, seconds: float, precision: str) -> dict[str, float | None]:
    """Of a step that takes so long."""
    passes, peak = one.program.token_passes // one.sleep.window, peak_of(precision)
    flops = step_flops(one.model.config, one.program, one.sleep) / seconds
    return {
        "passes": passes, "tokens_per_s": WINDOWS * one.sleep.window / seconds, "flops_per_s": flops,
        "mfu": flops / peak if peak else None, "replayed": one.replays.replayed if one.replays else 0,
        "refused": one.replays.refused if one.replays else 0,
    }  # fmt: skip


def shown(row: dict[str, Any]) -> str:
    """A row in words."""
    if "failed" in row:
        return f"failed: {row['failed']}"
    mfu = "n/a" if row["mfu"] is None else f"{row['mfu']:.1%}"
    per = [1e3 * row[key] / row["passes"] for key in ("step_s", "launch_s")]
    return (
        f"{per[0]:9.2f} ms a pass  {per[1]:9.2f} ms of it launching  {row['tokens_per_s']:10,.0f} tokens/s  MFU {mfu}"
    )


def about(dry: bool) -> dict[str, Any]:
    """The head of a report."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {"command": " ".join(["python", *sys.argv]), "torch": torch.__version__, "gpu": gpu, "dry": dry}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results, hardware and versions there")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument(
        "--dry", action="store_true", help="a toy on a CPU, its functions run again instead of replayed"
    )
    arguments = parser.parse_args()
    report = about(arguments.dry)
    if not (torch.cuda.is_available() or arguments.dry):
        print("no GPU run")
    elif arguments.dry:
        report |= compare(TOY, Sleep(16, 2, Loop(trigger="every")), torch.float32, 1, dry=True)
    else:
        recipe = load_recipe("hybrid-1b", [f"model.vocab={VOCAB}"]).value
        report |= compare(recipe.model, recipe.sleep, torch.bfloat16, arguments.steps, dry=False)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
