"""Checks and measurements of one task of a job: its node, its GPU, and the links to the other tasks."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import socket
import time
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleeptrain.cli.checks.check import run_check
from sleeptrain.cli.checks.machine import GIB, SHARED_MEMORY

if TYPE_CHECKING:
    import torch

GROUP = timedelta(seconds=120)
"""How long a task waits for the others."""
SHARED_MEMORY_NEEDED = GIB // 4
"""Bytes that must be free in /dev/shm for data workers."""
REPEAT = 5
"""Times that something is measured; the best one counts, which other work disturbs least."""


def check_node(args: argparse.Namespace) -> dict[str, Any]:
    """What is found without the other tasks, as JSON values: see `sleep_launch.verdict` for what follows from it.

    `args`: the options of `sleeptrain preflight`. The first task of a node checks what all its tasks share.
    """
    from sleeptrain.parallel.ranks import rank_and_world

    rank, world = rank_and_world()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    failures: list[str] = []
    facts: dict[str, str] = {}
    if local == 0:
        failures += _folders(args)
        failures += _kernels()
    gpus = _gpus()
    if gpus < args.gpus:
        failures.append(f"torch finds {gpus} GPUs; a node must have {args.gpus}")
    facts |= _versions()
    return {
        "node": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "rank": rank,
        "world": world,
        "local": local,
        "tasks": args.tasks or int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        "clock": _clock(args.folder),
        "facts": facts,
        "failures": failures,
        "speeds": {},
        "judged": gpus > 0,
        "group": None,
    }


def measure(result: dict[str, Any]) -> None:
    """Add the speeds of a matrix product and of all-reduces, or why the process group has failed, to a task's result.

    Speeds of CPUs, whose cores tasks may share, are shown but not judged.
    """
    import torch

    from sleeptrain.parallel.process import local_device

    device = local_device(result["local"])
    result["speeds"]["matmul"] = _matmul(device)
    if result["world"] > 1:
        try:
            _all_reduces(result, device)
        except (RuntimeError, ValueError, OSError) as error:
            first = next(iter(str(error).splitlines()), type(error).__name__)
            result["group"] = f"task {result['rank']}: the process group has failed: {first}"
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


def _folders(args: argparse.Namespace) -> list[str]:
    """What is wrong with the run folder, the local folder and shared memory."""
    wanted = [(args.run_dir, args.space, "--run-dir")] if args.run_dir else []
    wanted += [(Path(os.path.expandvars(args.local)).expanduser(), 0, "--local")] if args.local else []
    failures = []
    for path, space, option in wanted:
        probe = path / f".preflight-{socket.gethostname()}-{os.getpid()}"
        try:
            path.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"probe")
            probe.unlink()
        except OSError as error:
            failures.append(f"{path} ({option}) cannot be written: {error.strerror}")
            continue
        needed = _space_needed(path, space)
        if (free := shutil.disk_usage(path).free) < needed:
            failures.append(f"{path} ({option}) has {free / GIB:.1f} GiB free; its checkpoints need {needed / GIB:.1f}")
    if SHARED_MEMORY.is_dir() and (free := shutil.disk_usage(SHARED_MEMORY).free) < SHARED_MEMORY_NEEDED:
        failures.append(f"{SHARED_MEMORY} has {free / GIB:.2f} GiB free; data workers need {SHARED_MEMORY_NEEDED / GIB}")  # fmt: skip
    return failures


def _space_needed(run: Path, space: int) -> int:
    """Bytes of `space` for checkpoints that those of an earlier start do not have yet, and at least the largest of them.

    A save writes a checkpoint before it deletes another one, so that room for one is always needed.
    """
    from sleeptrain.checkpoint.folder import checkpoints
    from sleeptrain.run.folder import CHECKPOINTS

    sizes = [sum(file.stat().st_size for file in found.iterdir()) for found in checkpoints(run / CHECKPOINTS)]
    return min(space, max([space - sum(sizes), *sizes]))


def _kernels() -> list[str]:
    """Kernels that differ from their reference on this node."""
    from sleeptrain.cli.checks import CHECKS

    [check] = [check for check in CHECKS if check.name == "kernels"]
    return [f"{found.name}: {found.detail}" for found in run_check(check) if found.status == "failed"]


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _versions() -> dict[str, str]:
    """Versions that all nodes must have alike."""
    import torch

    facts = {"python": platform.python_version(), "torch": torch.__version__, "sleeptrain": metadata.version("sleeptrain")}  # fmt: skip
    if torch.cuda.is_available():
        facts["GPU"] = torch.cuda.get_device_name()
        facts["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
        driver = Path("/sys/module/nvidia/version")
        facts["driver"] = driver.read_text().strip() if driver.exists() else "unknown"
    return facts


def _clock(folder: Path) -> float:
    """Seconds by which this node's clock is ahead of the file system's that holds `folder`; 0 if it cannot be written."""
    probe = folder / f".clock-{socket.gethostname()}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"probe")
        ahead = time.time() - probe.stat().st_mtime
        probe.unlink()
    except OSError:
        return 0.0
    return round(ahead, 3)


def _matmul(device: torch.device) -> float:
    """FLOPs a second of a square matrix product: bf16 of 8192 on a GPU, fp32 of 512 on a CPU."""
    import torch

    gpu = device.type == "cuda"
    size, dtype = (8192, torch.bfloat16) if gpu else (512, torch.float32)
    a = torch.randn(size, size, device=device, dtype=dtype)

    def multiply() -> None:
        _ = a @ a

    return 2 * size**3 / _best_seconds(multiply, device)


def _all_reduces(result: dict[str, Any], device: torch.device) -> None:
    """Bus bandwidth in bytes a second, 2 (n-1)/n of the bytes over the time, of the tasks of a node and of all tasks."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=GROUP)
    nodes: list[Any] = [None] * result["world"]
    dist.all_gather_object(nodes, result["node"])
    tensor = torch.ones(1 << (26 if device.type == "cuda" else 18), device=device)
    for name, members in [
        (node, [rank for rank, at in enumerate(nodes) if at == node]) for node in dict.fromkeys(nodes)
    ]:
        group = dist.new_group(members, timeout=GROUP)
        if name == result["node"] and len(members) > 1:
            result["speeds"]["all-reduce in the node"] = _bandwidth(tensor, group, device)
    if len(set(nodes)) > 1:
        result["speeds"]["all-reduce"] = _bandwidth(tensor, dist.group.WORLD, device)


def _bandwidth(tensor: torch.Tensor, group: Any, device: torch.device) -> float:
    import torch.distributed as dist

    size = dist.get_world_size(group)
    seconds = _best_seconds(lambda: dist.all_reduce(tensor, group=group), device)
    return 2 * (size - 1) / size * tensor.numel() * tensor.element_size() / seconds


def _best_seconds(work: Any, device: torch.device) -> float:
    import torch

    best = float("inf")
    for repeat in range(1 + REPEAT):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if repeat > 0:  # the first one starts libraries and threads
            best = min(best, time.perf_counter() - began)
    return best
