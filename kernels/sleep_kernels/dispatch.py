"""Backend selection: whether an operator runs in Triton or in plain torch. Does not import Triton.

Looks the launch configuration up in the table of verified.py, and whether it was right in verdicts.py. The logger "sleep_kernels"
reports each decision and its reason once.
"""

import functools
import logging
from importlib import metadata

import torch

from sleep_kernels import assembler, verdicts, verified
from sleep_kernels.verified import LaunchConfig

_LOG = logging.getLogger("sleep_kernels")
BACKENDS = ("auto", "chunked", "triton")
"""Backends of delta_inputs and gated_rms_norm. gated_delta_rule has "reference" in addition."""


def check_backend(backend: str) -> None:
    """Raise ValueError for an unknown backend."""
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is not offered; choose one of {', '.join(BACKENDS)}")


def select_config(operator: str, backend: str, device: torch.device, dtype: torch.dtype, d: int) -> LaunchConfig | None:
    """The launch configuration of an operator for tensors of `dtype` and width `d`; None means plain torch.

    Raises ValueError for "triton" without a configuration, and for "triton" on a CPU unless Triton interprets its kernels
    (TRITON_INTERPRET=1 set before Triton is first imported).
    """
    config = None
    if backend != "chunked" and device.type != "cpu":
        config = config_for_gpu(operator, device, dtype, d, d, verified_only=backend == "auto")
    elif backend == "triton" and is_interpreting():
        config = verified.interpreted()
    if backend == "triton" and config is None:
        raise ValueError(f"backend 'triton' has no kernel for {dtype}, d = {d} on {device}; choose 'chunked' or 'auto'")
    return config


def fits_int32_offsets(*tensors: torch.Tensor) -> bool:
    """Whether 32-bit offsets can address one sequence of each tensor [batch, ...], as the kernels require."""
    return all(tensor.shape[1:].numel() < 1 << 31 for tensor in tensors)


def triton_version() -> str | None:
    """Triton's version without its local suffix; None if Triton is not installed."""
    try:
        return metadata.version("triton").split("+")[0]
    except metadata.PackageNotFoundError:
        return None


def config_for_gpu(
    operator: str, device: torch.device, dtype: torch.dtype, d_k: int, d_v: int, *, verified_only: bool
) -> LaunchConfig | None:
    """The launch configuration on a GPU for tensors of `dtype`; None means plain torch. Each decision is logged once.

    verified_only: ignore configurations that have not been verified on a GPU.
    """
    return _config_for_gpu(operator, _device_index(device), _dtype_name(dtype), d_k, d_v, verified_only)


@functools.cache
def _config_for_gpu(
    operator: str, index: int, dtype: str, d_k: int, d_v: int, verified_only: bool
) -> LaunchConfig | None:
    config, key, reason = _look_up(index, dtype, d_k, d_v, verified_only)
    if reason:
        _LOG.warning("%s runs in plain torch: %s %s", operator, key, reason)
    else:
        _LOG.info("%s runs in Triton: %s", operator, key)
    return config


def fallback_reason(device: torch.device, dtype: torch.dtype, d_k: int, d_v: int) -> str | None:
    """Why backend "auto" falls back to plain torch for tensors of `dtype` on `device`; None if it runs Triton."""
    if device.type != "cuda":
        return "torch sees no GPU here"
    _, key, reason = _look_up(_device_index(device), _dtype_name(dtype), d_k, d_v, True)
    return f"{key} {reason}" if reason else None


def _look_up(index: int, dtype: str, d_k: int, d_v: int, verified_only: bool) -> tuple[LaunchConfig | None, str, str]:
    """The configuration or None, the key that was looked up as text, and the reason for None."""
    arch = "sm_{}{}".format(*torch.cuda.get_device_capability(index))
    version, ptxas = triton_version(), assembler.in_use(arch)
    key = f"Triton {version}, ptxas {ptxas[1] if ptxas else None}, {arch}, {dtype}, d_k={d_k}, d_v={d_v}"
    entry = verified.find_entry(version, arch, dtype, d_k) if version and d_k == d_v else None
    if entry is None:
        return None, key, "is not in the table of Triton kernels"
    right = None if ptxas is None else verdicts.verdict(verdicts.VerdictKey.of(entry, ptxas[1]))
    if verified_only and not right:
        found = "was never compared with the reference on a GPU" if right is None else "gave wrong results on a GPU"
        way_out = assembler.way_out(ptxas[1] if ptxas else None)
        test = "run `python -m sleep_kernels.self_test --write` to compare it and to keep the verdict"
        return None, key, f"{found}; {way_out}{'then ' if way_out else ''}{test}"
    return verified.parse(entry), key, ""


def _device_index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def is_interpreting() -> bool:
    """Whether Triton runs its kernels in the interpreter (TRITON_INTERPRET=1 set before its first import)."""
    import triton

    return bool(triton.knobs.runtime.interpret)
