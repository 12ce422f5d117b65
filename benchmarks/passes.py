"""Time of a pass of a 1B hybrid on a GPU: eager, compiled, replayed as CUDA graphs, and both.

    python benchmarks/passes.py --json OUT     milliseconds, tokens a second and MFU of `configs/hybrid-1b.yaml`
    python benchmarks/passes.py --dry          a toy on a CPU, to check that the script runs

`benchmarks/gpu.sh passes` calls it. A step is forward and backward of one row of four windows, all but the last with two
passes, by the checkpointed executor with `train.recompute: pass`, without optimizer and DeepSpeed. The time of a step is
divided by its passes. "launching" is the time until the host has launched the last kernel of a pass, which CUDA graphs
shorten. It is an upper bound: after about a thousand launches the queue is full and the host waits for the device, so a
value close to the time of the pass carries no information. Peak bytes are those of the timed steps; "warm_up" ones are
those of the steps before, which compile, capture and check graphs. The memory of graphs counts as reserved, not as
allocated. The mixers, MLPs and norms of all blocks are compiled. MFU is relative to the bf16 peak of the data sheet and
counts all passes, but no recomputation. Without a GPU the script prints "no GPU run".
"""

from __future__ import annotations

import argparse
import gc
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

from sleep_kernels.dispatch import fallback_reason
from sleeptrain.execute.autograd import CheckpointedExecutor, ExecutorOptions, RecomputeName
from sleeptrain.execute.cuda_graphs import GraphCache
from sleeptrain.execute.graph_capture import CudaGraphRecorder, EagerReplay, GraphRecorder
from sleeptrain.model.config import AttentionConfig, DeltaNetConfig, MlpConfig, Model
from sleeptrain.model.counts import parameters, step_flops
from sleeptrain.model.init import initialise
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.program import Loop, Program, Sleep, Window, compile
from sleeptrain.recipe import load_recipe
from sleeptrain.train.throughput import peak_flops

VOCAB, WINDOWS = 32768, 4
MODES = {"eager": (False, False), "compiled": (True, False), "graphs": (False, True), "compiled, graphs": (True, True)}
"""By mode: whether blocks are compiled, and whether passes are replayed as CUDA graphs."""
TOY = Model(
    width=32, layers="GA", vocab=50, attention=AttentionConfig(heads=2, kv_heads=1, head_dim=16), deltanet=DeltaNetConfig(2, 2, 16),
    mlp=MlpConfig(48), tie=False,
)  # fmt: skip


@dataclass
class Trainer:
    """A model with the options of its steps."""

    model: LanguageModel
    sleep: Sleep
    program: Program
    policy: RecomputeName
    graph_cache: GraphCache | None
    padded: bool = False

    def step(self, seed: int) -> Tensor:
        """Forward and backward of one row; returns the losses and leaves the gradients in the model."""
        device, length = next(self.model.parameters()).device, self.program.ops[-1].stop  # type: ignore[union-attr]
        drawn = torch.Generator().manual_seed(seed)
        tokens = torch.randint(self.model.config.vocab or 0, (1, length), generator=drawn).to(device)
        valid = torch.ones_like(tokens, dtype=torch.bool)
        valid[:, : 3 + seed % 5] = False
        batch = MicroBatch(tokens, tokens, self.model.zero_state(self.sleep, 1), valid if self.padded else None)
        (result,) = CheckpointedExecutor(
            self.model,
            [batch],
            self.program,
            self.sleep,
            self.policy,
            options=ExecutorOptions(graph_cache=self.graph_cache),
        ).run()
        self.model.zero_grad()
        result.nll.sum().backward()
        return result.nll.detach()


def trainer(
    config: Model,
    sleep: Sleep,
    device: torch.device,
    dtype: torch.dtype,
    policy: RecomputeName,
    recorder: GraphRecorder | None,
) -> Trainer:
    """A new model, always with the same weights, and a program over windows that are all predicted."""
    model = LanguageModel(config, seed=None).to(device)
    windows = [Window(i * sleep.window, (i + 1) * sleep.window, True) for i in range(WINDOWS)]
    initialise(model, 0, 2 * windows[-1].stop)
    graph_cache = None if recorder is None else GraphCache(recorder)
    return Trainer(model.to(dtype), sleep, compile(sleep, windows, len(config.pattern)), policy, graph_cache)


def measure(one: Trainer, steps: int, device: torch.device) -> dict[str, float]:
    """The median seconds of a step and of its launches; on a GPU also peak bytes."""
    wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for seed in range(4):  # compiles, captures and checks graphs
        one.step(seed)
    wait()
    bytes_ = peaks(device, "warm_up_peak")
    seconds, launch_seconds = [], []
    for seed in range(steps):
        start = time.perf_counter()
        one.step(seed)
        launch_seconds.append(time.perf_counter() - start)
        wait()
        seconds.append(time.perf_counter() - start)
    bytes_ |= peaks(device, "peak")
    return {"step_s": statistics.median(seconds), "launch_at_most_s": statistics.median(launch_seconds)} | bytes_


def peaks(device: torch.device, name: str) -> dict[str, float]:
    """Peak bytes allocated and reserved on a GPU since the last call; resets the peaks and empties the cache."""
    if device.type != "cuda":
        return {}
    peak = {
        f"{name}_bytes": torch.cuda.max_memory_allocated(),
        f"{name}_reserved_bytes": torch.cuda.max_memory_reserved(),
    }
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return peak


def mode(name: str, config: Model, sleep: Sleep, dtype: torch.dtype, steps: int, dry: bool) -> dict[str, Any]:
    """The measurements of one of MODES on a new model."""
    device = torch.device("cpu" if dry else "cuda")
    compiled, graphs = MODES[name]
    gc.collect()
    peaks(device, "previous_mode")
    recorder: GraphRecorder | None = (EagerReplay() if dry else CudaGraphRecorder()) if graphs else None
    one = trainer(config, sleep, device, dtype, "pass", recorder)
    if compiled:
        torch._dynamo.reset()
        for block in one.model.layers:
            for part in (block.norm1, block.mixer, block.norm2, block.mlp):
                part.compile(fullgraph=True, dynamic=False, backend="aot_eager" if dry else "inductor")
    measured = measure(one, steps, device)
    return measured | rates(one, measured["step_s"], "bf16" if dtype == torch.bfloat16 else "fp32")


def compare(
    config: Model, sleep: Sleep, dtype: torch.dtype, steps: int, report: dict[str, Any], out: Path | None
) -> None:
    """Measure every mode on the same model; the report is written after each."""
    with torch.device("meta"):
        count = parameters(LanguageModel(config))["total"]
    report |= {"parameters": count, "window": sleep.window, "windows": WINDOWS, "modes": {}}
    for name in MODES:
        try:
            row = mode(name, config, sleep, dtype, steps, report["dry"])
        except Exception as error:  # a mode that fails is a result, too
            row = {"failed": f"{type(error).__name__}: {error}"[:300]}
        report["modes"][name] = row
        print(f"{name:18}{formatted(row)}", flush=True)
        write(out, report)


def write(out: Path | None, report: dict[str, Any]) -> None:
    """Write the report, if there is a file for it."""
    if out:
        out.write_text(json.dumps(report, indent=1))


def rates(one: Trainer, seconds: float, precision: str) -> dict[str, float | None]:
    """Passes, tokens per second, FLOP/s, MFU and use of graphs of a step that takes `seconds`."""
    passes, peak = one.program.token_passes // one.sleep.window, peak_flops(precision)
    flops = step_flops(one.model.config, one.program, one.sleep) / seconds
    return {
        "passes": passes, "tokens_per_s": WINDOWS * one.sleep.window / seconds, "flops_per_s": flops,
        "mfu": flops / peak if peak else None, "replayed": one.graph_cache.replayed if one.graph_cache else 0,
        "refused": one.graph_cache.refused if one.graph_cache else 0,
    }  # fmt: skip


def formatted(row: dict[str, Any]) -> str:
    """One line of the printed table."""
    if "failed" in row:
        return f"failed: {row['failed']}"
    mfu = "n/a" if row["mfu"] is None else f"{row['mfu']:.1%}"
    per = [1e3 * row[key] / row["passes"] for key in ("step_s", "launch_at_most_s")]
    speed = f"{row['tokens_per_s']:10,.0f} tokens/s  MFU {mfu}"
    return f"{per[0]:9.2f} ms a pass, at most {per[1]:9.2f} ms of it launching  {speed}"


def about(dry: bool) -> dict[str, Any]:
    """The header of a report."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {"command": " ".join(["python", *sys.argv]), "torch": torch.__version__, "gpu": gpu, "dry": dry}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results, hardware and versions there")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--dry", action="store_true", help="a toy on a CPU, with eager replay instead of CUDA graphs")
    arguments = parser.parse_args()
    report = about(arguments.dry)
    if not (torch.cuda.is_available() or arguments.dry):
        print("no GPU run")
        write(arguments.json, report)
    elif arguments.dry:
        compare(TOY, Sleep(16, 2, Loop(trigger="every")), torch.float32, 1, report, arguments.json)
    else:
        # Without a verified entry the operators run in plain torch, which is another measurement.
        report["kernels"] = fallback_reason(torch.device("cuda", 0), torch.bfloat16, 128, 128) or "fused"
        print("kernels:", report["kernels"])
        recipe = load_recipe("hybrid-1b", [f"model.vocab={VOCAB}"]).value
        compare(recipe.model, recipe.sleep, torch.bfloat16, arguments.steps, report, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
