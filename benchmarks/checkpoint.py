"""Checkpoints beside those of DeepSpeed: how long a save stops training, how much it writes, and what verification costs.

Four processes share the state of AdamW (ZeRO 1, fp32). In every round each of them, one after the other, saves with DeepSpeed and
gathers the fp32 weights on rank 0, which writes them for evaluation, as this project did before; saves in the background; loads,
with and without verification, which ends with an all-gather of the parameters, as every step does; makes this all-gather alone; and reads
the files of its part without looking at them. Files that are loaded or read are not in the page cache. Times are the longest of all
processes, with a barrier before each; ratios are taken within a round, and their medians count. Nothing is flushed to the disk by
DeepSpeed; our save flushes every file.

    python benchmarks/cpu.py --only checkpoint --json benchmarks/results/checkpoint.json
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from figures import Figure, part
from safetensors.torch import save_file
from torch import nn

from sleep_launch import local
from sleeptrain import checkpoint
from sleeptrain.checkpoint.format import read_index
from sleeptrain.engine import Engine, EngineSpec, Optim, build_engine
from sleeptrain.parallel.patches.deepspeed_logging import deepspeed_quiet
from sleeptrain.parallel.process import shutdown_distributed

PROCESSES, ROUNDS = 4, 5
ELEMENTS, QUICK_ELEMENTS = 90_000_000, 1_000_000
"""Parameters: 12 bytes of state each."""


def engine_of(elements: int) -> Engine:
    """An engine of square matrices that has made one step."""
    width = 1024 if elements > QUICK_ELEMENTS else 128
    model = nn.Module()
    model.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(max(1, elements // width**2)))
    engine = build_engine(model, Optim(), EngineSpec("fp32", zero=1, micro_rows=1, accumulation=1))
    engine.backward(torch.stack([weight.square().sum() for weight in engine.module.parameters()]).sum())
    engine.step()
    return engine


def timed(function: Callable[[], object]) -> float:
    """Seconds of the slowest process."""
    dist.barrier()
    began = time.perf_counter()
    function()
    seconds = torch.tensor(time.perf_counter() - began, dtype=torch.float64)
    dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
    return float(seconds)


def save_with_deepspeed(engine: Engine, folder: Path) -> None:
    """DeepSpeed's files, and the full fp32 weights by rank 0."""
    from deepspeed.utils import safe_get_full_fp32_param

    with deepspeed_quiet():
        engine._deepspeed.save_checkpoint(str(folder), tag="deepspeed", save_latest=False)
    weights = {name: safe_get_full_fp32_param(p).detach().clone() for name, p in engine.module.named_parameters()}
    if engine.process.rank == 0:
        save_file(weights, folder / "model.safetensors")
    dist.barrier()


def evict(folder: Path) -> None:
    """Drop the files from the page cache, as after a restart on another node."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def size_of(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure_in_process(folder: Path, elements: int, rounds: int) -> None:
    """All rounds; rank 0 writes the times to rounds.json."""
    engine = engine_of(elements)
    rank, found = engine.process.rank, []
    saver = checkpoint.Saver(engine, folder / "ours", checkpoint.KeepPolicy(1))
    for number in range(rounds):
        theirs = folder / f"theirs-{number}"
        before = timed(lambda theirs=theirs: save_with_deepspeed(engine, theirs))
        stall = timed(lambda number=number: saver.save(number, {}, {}))
        written = timed(saver.wait)
        path = folder / "ours" / f"step-{number:08d}"

        def load() -> None:
            chosen = checkpoint.newest_whole(engine.process, folder / "ours")
            assert chosen is not None
            checkpoint.load(engine, *chosen)

        def load_unverified(path: Path = path) -> None:
            checkpoint.load(engine, path, read_index(path))

        def read(path: Path = path) -> None:
            for file in sorted(path.glob(f"part-{rank:05d}.*")):
                file.read_bytes()

        times = {}
        functions = {"ours, load and verify": load, "ours, load": load_unverified, "plain read": read}
        for name, function in functions.items():
            if rank == 0:
                evict(path)
            times[name] = timed(function)
        times["ours, all-gather"] = timed(engine.use_loaded_state)
        if rank == 0:  # the only one that removes the folder whose files are counted
            found.append(
                {
                    "deepspeed, save": before, "ours, stall": stall, "ours, until written": stall + written,
                    **times,
                    "deepspeed, bytes": size_of(theirs), "ours, bytes": size_of(path),
                }
            )  # fmt: skip
            shutil.rmtree(theirs)
    if rank == 0:
        (folder / "rounds.json").write_text(json.dumps(found))


def measure(quick: bool) -> Sequence[Figure]:
    """Stall, bytes and load, relative to DeepSpeed's save and to a plain read."""
    elements, rounds = (QUICK_ELEMENTS, 1) if quick else (ELEMENTS, ROUNDS + 1)
    with tempfile.TemporaryDirectory(dir=os.environ.get("CHECKPOINT_FOLDER")) as made:
        command = [sys.executable, __file__, "--in-process", made, str(elements), str(rounds)]
        if status := local.run(command, PROCESSES):
            raise SystemExit(f"the processes ended with status {status}")
        found = json.loads((Path(made) / "rounds.json").read_text())
    found = found if quick else found[1:]  # the first one allocates the copy

    def ratio(name: str, over: str) -> float:
        return statistics.median(one[name] / one[over] for one in found)

    files = [(one["ours, load and verify"] - one["ours, all-gather"]) / one["plain read"] for one in found]

    detail = {"rounds": found, "processes": PROCESSES, "bytes of state": 12 * elements}
    return [
        Figure("stall of a save in the background", ratio("ours, stall", "deepspeed, save"), "of DeepSpeed's save", at_most=0.1, detail=detail),
        Figure("time until it is written", ratio("ours, until written", "deepspeed, save"), "of DeepSpeed's save"),
        Figure("bytes written", ratio("ours, bytes", "deepspeed, bytes"), "of DeepSpeed's", at_most=0.75),
        Figure("load with verification", ratio("ours, load and verify", "ours, load"), "of one without", at_most=1.2),
        Figure("load with verification, all-gather of the parameters aside", statistics.median(files), "of a plain read"),
        Figure("load with verification", ratio("ours, load and verify", "plain read"), "of a plain read"),
    ]  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--in-process"]:
        measure_in_process(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
        shutdown_distributed()
    else:
        part(measure, __doc__ or "", ("sleeptrain", "torch", "deepspeed"))
