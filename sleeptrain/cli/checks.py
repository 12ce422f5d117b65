"""What `sleeptrain doctor` tries: one small function a check, none of which can hide another."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

NEEDED_ON_CPU = ("torch", "deepspeed", "mosaicml-streaming", "omegaconf", "numpy", "rich")
"""Pinned packages without which nothing trains; the others serve GPUs, tensor parallelism, tracking or export."""
REPORTED = (
    "torch",
    "deepspeed",
    "megatron-core",
    "triton",
    "mosaicml-streaming",
    "wandb",
    "omegaconf",
    "numpy",
    "rich",
)
SHARED_MEMORY = Path("/dev/shm")
LEFTOVER = re.compile(r"\d{6}_[a-z_]+|deepspeed_\w+|torch_\d+\w*|nccl-\w+|psm_\w+|sem\.mp-\w+")
"""What streaming, DeepSpeed, torch, NCCL and multiprocessing call their files in shared memory."""
TOLERANCE = 1e-4
"""Largest relative error of a float32 kernel against the float64 reference."""
GIB = 1 << 30


@dataclass(frozen=True)
class CheckResult:
    """One line of the table."""

    name: str
    status: Literal["ok", "missing", "failed"]
    detail: str
    advice: str = ""
    needed: bool = True
    """Whether training on a CPU depends on it."""


@dataclass(frozen=True)
class Check:
    """A function that yields results; what it raises becomes a failed one with `advice`."""

    name: str
    find: Callable[[], Iterator[CheckResult]]
    advice: str
    needed: bool = True


def examine(check: Check) -> list[CheckResult]:
    """The results of one check, whatever happens in it."""
    results: list[CheckResult] = []
    try:
        results += check.find()
    except Exception as error:
        first = next(iter(str(error).splitlines()), "")
        status: Literal["missing", "failed"] = "missing" if isinstance(error, ImportError) else "failed"
        results.append(CheckResult(check.name, status, f"{type(error).__name__}: {first}", check.advice, check.needed))
    return results


def check_python() -> Iterator[CheckResult]:
    """The interpreter against the oldest supported one."""
    right = sys.version_info >= (3, 11)
    yield CheckResult(
        "python",
        "ok" if right else "failed",
        f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "" if right else "use Python 3.11 or newer",
    )


def check_versions() -> Iterator[CheckResult]:
    """Installed versions against the pinned ones, which were run together."""
    pinned = dict(re.findall(r"(?m)^([\w.-]+)==([\w.]+)", "\n".join(metadata.requires("sleeptrain") or [])))
    for name in REPORTED:
        wanted, needed = pinned[name], name in NEEDED_ON_CPU
        advice = f"pip install {name}=={wanted}"
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield CheckResult(name, "missing", f"{wanted} is pinned", advice, needed)
            continue
        if found.partition("+")[0] == wanted:
            yield CheckResult(name, "ok", found, needed=needed)
        else:
            yield CheckResult(
                name, "failed", f"{found}, but {wanted} is pinned", f"{advice}; others may work, untested", False
            )


def check_devices() -> Iterator[CheckResult]:
    """GPUs that torch can use."""
    import torch

    if not torch.cuda.is_available():
        yield CheckResult(
            "gpu", "missing", "torch sees none", "training runs on the CPU: right for toy sizes only", False
        )
        return
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        major, minor = about.major, about.minor
        yield CheckResult(
            f"gpu {index}", "ok", f"{about.name}, {about.total_memory / GIB:.0f} GiB, sm_{major}{minor}", needed=False
        )


def check_gloo() -> Iterator[CheckResult]:
    """A process group of one, and a sum over it."""
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        yield CheckResult("gloo", "ok", f"this process is in a group of {dist.get_world_size()} already")
        return
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=20))
    try:
        value = torch.ones(2)
        dist.all_reduce(value)
        right = value.tolist() == [1.0, 1.0]
    finally:
        dist.destroy_process_group()
    yield CheckResult("gloo", "ok" if right else "failed", "all_reduce over one process")


def check_kernels() -> Iterator[CheckResult]:
    """The chunked kernel against the float64 reference: output, final state, and all gradients, the state's among them.
    On a GPU the fused ones too."""
    import torch

    tensors = _kernel_inputs()
    expected = _kernel_run([tensor.double() for tensor in tensors], "reference")
    found = _kernel_run(tensors, "chunked")
    worst, name = max(
        (((ours.double() - right).abs().max() / right.abs().max()).item(), name)
        for name, ours, right in _zip(found, expected)
    )
    finite = all(torch.isfinite(tensor).all() for tensor in found.values())
    detail = f"largest relative error {worst:.1e}, in {name}"
    good = finite and worst < TOLERANCE
    yield CheckResult(
        "kernels", "ok" if good else "failed", detail, "" if good else "report it with this machine's CPU model"
    )
    if torch.cuda.is_available():
        yield from _fused_kernels(torch.device("cuda", torch.cuda.current_device()))


def _fused_kernels(device: Any) -> Iterator[CheckResult]:
    """Every kernel of the table for this GPU and Triton, around a chunk's end, two value heads a key head."""
    import torch

    from sleep_kernels.comparison import Shape
    from sleep_kernels.self_test import architecture, entries, self_test

    found = entries(device)
    if not found:
        advice = "training runs plain torch on this GPU"
        yield CheckResult("fused kernels", "missing", f"none for {architecture(device)} and this Triton", advice, False)
    for entry in found:
        (result,) = self_test(device, [Shape(2, 129, 4, 8, entry["d"], getattr(torch, entry["dtype"]))])
        name = f"fused kernels, {entry['dtype']}, d {entry['d']}"
        if not result.ok:
            yield CheckResult(name, "failed", str(result), "train.kernels=chunked does without them; report it", False)
        elif not entry["verified_on_gpu"]:
            advice = "python -m sleep_kernels.self_test --write"
            yield CheckResult(name, "missing", f"{result}; not used before they are verified", advice, False)
        else:
            yield CheckResult(name, "ok", str(result), needed=False)


def _kernel_inputs() -> list[Any]:
    import torch
    from torch.nn.functional import logsigmoid, normalize

    seed = torch.Generator().manual_seed(0)
    batch, time, key_heads, value_heads, d = 2, 100, 1, 2, 16

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=seed)

    return [
        normalize(normal(batch, time, key_heads, d), dim=-1),
        normalize(normal(batch, time, key_heads, d), dim=-1),
        normal(batch, time, value_heads, d),
        logsigmoid(normal(batch, time, value_heads) + 3),
        normal(batch, time, value_heads).sigmoid(),
        normal(batch, value_heads, d, d),
    ]


def _kernel_run(tensors: list[Any], backend: str) -> dict[str, Any]:
    """Output, final state, and the gradients of a sum that weighs every element of both differently."""
    from sleep_kernels import gated_delta_rule

    inputs = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    o, state = gated_delta_rule(*inputs, backend=backend)
    (o.cos().sum() + state.cos().sum()).backward()
    names = ("q", "k", "v", "g", "beta", "initial_state")
    gradients = {f"the gradient of {name}": tensor.grad for name, tensor in zip(names, inputs, strict=True)}
    return {"o": o.detach(), "the final state": state.detach(), **gradients}


def _zip(found: dict[str, Any], expected: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name, right in expected.items():
        yield name, found[name], right


def check_shards() -> Iterator[CheckResult]:
    """Shards written by mosaicml-streaming and read back."""
    import numpy as np

    from sleep_data import shards
    from sleep_data.tasks import make
    from sleeptrain.data.config import Data, Source
    from sleeptrain.data.evaluation import Evaluation

    task = make("rule110", {})
    with tempfile.TemporaryDirectory(prefix="sleeptrain-doctor-") as folder:
        out = Path(folder, "shards")
        shards.build(task, out, {"train": 8})
        [stored] = Evaluation(Data([Source(str(out))]), micro=8, split="train")
    made = np.concatenate([block["tokens"] for block in task.blocks("train", 8, 0)])
    equal = bool((stored.tokens.numpy() == made).all())
    yield CheckResult("streaming", "ok" if equal else "failed", "8 samples written and read back")


def check_space() -> Iterator[CheckResult]:
    """Free space where runs, temporary files and shared memory go."""
    for name, path, enough in (
        ("disk", Path.cwd(), 5),
        ("temporary files", Path(tempfile.gettempdir()), 1),
        ("/dev/shm", SHARED_MEMORY, 1),
    ):
        if not path.is_dir():
            yield CheckResult(name, "missing", str(path), "data workers need shared memory; mount a tmpfs there", False)
            continue
        usage = shutil.disk_usage(path)
        good = usage.free >= enough * GIB
        detail = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free in {path}"
        yield CheckResult(
            name, "ok" if good else "failed", detail, "" if good else f"free at least {enough} GiB", False
        )


def check_leftovers() -> Iterator[CheckResult]:
    """Files in shared memory that ended runs have left."""
    found = leftovers(SHARED_MEMORY, _mapped())
    if not found:
        yield CheckResult("leftovers", "ok", f"none in {SHARED_MEMORY}", needed=False)
        return
    size = sum(path.lstat().st_size for path in found) / GIB
    shown = " ".join(map(str, found[:3])) + (" ..." if len(found) > 3 else "")
    yield CheckResult(
        "leftovers", "failed", f"{len(found)} of ended runs, {size:.1f} GiB: {shown}", "remove them with rm", False
    )


def leftovers(folder: Path, used: set[str]) -> list[Path]:
    """This user's files in `folder` that a training run made and that no process has mapped."""
    if not folder.is_dir():
        return []
    mine = [
        path
        for path in sorted(folder.iterdir())
        if LEFTOVER.fullmatch(path.name) and path.lstat().st_uid == os.getuid()
    ]
    return [path for path in mine if str(path) not in used]


def _mapped() -> set[str]:
    """Files that this user's processes have mapped."""
    paths: set[str] = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            paths |= {
                line.split(maxsplit=5)[5]
                for line in maps.read_text().splitlines()
                if line.count("/") and len(line.split()) > 5
            }
        except OSError:
            continue  # it has ended, or belongs to somebody else
    return paths


CHECKS = (
    Check("python", check_python, "use Python 3.11 or newer"),
    Check("versions", check_versions, "install sleeptrain with pip, which records its dependencies"),
    Check("devices", check_devices, "compare torch's CUDA version with the driver's (nvidia-smi)", needed=False),
    Check("gloo", check_gloo, "let the host name resolve: `getent hosts $(hostname)`, or set GLOO_SOCKET_IFNAME=lo"),
    Check("kernels", check_kernels, "install sleeptrain again: sleep_kernels comes with it"),
    Check("streaming", check_shards, "pip install mosaicml-streaming, at the pinned version"),
    Check("space", check_space, "look at the mounts with df", needed=False),
    Check("leftovers", check_leftovers, "look into /dev/shm", needed=False),
)
"""In the order of the table."""
