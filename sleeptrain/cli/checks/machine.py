"""Checks of the machine: Python, GPUs, a gloo process group, free space."""

from __future__ import annotations

import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from sleeptrain.cli.checks.check import CheckResult

SHARED_MEMORY = Path("/dev/shm")
GIB = 1 << 30


def check_python() -> Iterator[CheckResult]:
    """The interpreter's version against the oldest supported one."""
    supported = sys.version_info >= (3, 11)
    yield CheckResult(
        "python",
        "ok" if supported else "failed",
        f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "" if supported else "use Python 3.11 or newer",
    )


def check_gpus() -> Iterator[CheckResult]:
    """The GPUs that torch can use: name, memory, compute capability."""
    import torch

    if not torch.cuda.is_available():
        advice = "training runs on the CPU, which is fast enough for toy sizes only"
        yield CheckResult("gpu", "missing", "torch finds no GPU", advice, False)
        return
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        detail = f"{gpu.name}, {gpu.total_memory / GIB:.0f} GiB, sm_{gpu.major}{gpu.minor}"
        yield CheckResult(f"gpu {index}", "ok", detail, needed=False)


def check_gloo() -> Iterator[CheckResult]:
    """A gloo process group of one process, and an all_reduce in it."""
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        detail = f"this process is already in a group of {dist.get_world_size()}"
        yield CheckResult("gloo", "ok", detail)
        return
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=20))
    try:
        value = torch.ones(2)
        dist.all_reduce(value)
        correct = value.tolist() == [1.0, 1.0]
    finally:
        dist.destroy_process_group()
    yield CheckResult("gloo", "ok" if correct else "failed", "all_reduce in a group of one process")


def check_space() -> Iterator[CheckResult]:
    """Free space of the current folder, the folder of temporary files, and shared memory."""
    for name, path, required in (
        ("disk", Path.cwd(), 5),
        ("temporary files", Path(tempfile.gettempdir()), 1),
        ("/dev/shm", SHARED_MEMORY, 1),
    ):
        if not path.is_dir():
            yield CheckResult(name, "missing", str(path), "data workers need shared memory; mount a tmpfs there", False)
            continue
        usage = shutil.disk_usage(path)
        enough = usage.free >= required * GIB
        detail = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free in {path}"
        advice = "" if enough else f"free at least {required} GiB"
        yield CheckResult(name, "ok" if enough else "failed", detail, advice, False)
