"""Whether an operator runs in Triton: asks the table, and says once which way it went and why. Imports no Triton."""

import functools
import logging
from importlib import metadata

import torch

from sleep_kernels import verified
from sleep_kernels.verified import Plan

_LOG = logging.getLogger("sleep_kernels")
BACKENDS = ("auto", "chunked", "triton")
"""Of the operators around the gated delta rule, which itself has "reference" besides."""


def check(backend: str) -> None:
    """Raise ValueError for a backend that is not offered."""
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is not offered; choose one of {', '.join(BACKENDS)}")


def launches(operator: str, backend: str, device: torch.device, dtype: torch.dtype, d: int) -> Plan | None:
    """How an operator on tensors of `dtype` and width `d` is launched; None means plain torch.

    Raises ValueError for "triton" where there is no launch, or no GPU and no interpreter (TRITON_INTERPRET=1 before
    Triton is first imported).
    """
    plan = None
    if backend != "chunked" and device.type != "cpu":
        plan = for_gpu(operator, device, dtype, d, d, verified_only=backend == "auto")
    elif backend == "triton" and interpreting():
        plan = verified.interpreted()
    if backend == "triton" and plan is None:
        raise ValueError(f"backend 'triton' has no kernel for {dtype}, d = {d} on {device}; choose 'chunked' or 'auto'")
    return plan


def addressable(*tensors: torch.Tensor) -> bool:
    """Whether the kernels' offsets into one sequence of each tensor [batch, ...] fit into 32 bits."""
    return all(tensor.shape[1:].numel() < 1 << 31 for tensor in tensors)


def triton_version() -> str | None:
    """Triton's version without a local suffix, None if it is not installed."""
    try:
        return metadata.version("triton").split("+")[0]
    except metadata.PackageNotFoundError:
        return None


def for_gpu(
    operator: str, device: torch.device, dtype: torch.dtype, d_k: int, d_v: int, *, verified_only: bool
) -> Plan | None:
    """The launches on a GPU for tensors of `dtype`; None means plain torch. Each answer is logged once.

    verified_only: a plan that no GPU has verified yet does not count.
    """
    return _for_gpu(operator, _index(device), _name(dtype), d_k, d_v, verified_only)


@functools.cache
def _for_gpu(operator: str, index: int, dtype: str, d_k: int, d_v: int, verified_only: bool) -> Plan | None:
    plan, configuration, obstacle = _look_up(index, dtype, d_k, d_v, verified_only)
    if obstacle:
        _LOG.warning("%s runs in plain torch: %s %s", operator, configuration, obstacle)
    else:
        _LOG.info("%s runs in Triton: %s", operator, configuration)
    return plan


def why_plain(device: torch.device, dtype: torch.dtype, d_k: int, d_v: int) -> str | None:
    """Why "auto" would run the operators in plain torch for tensors of `dtype` there; None if it would run Triton."""
    if device.type != "cuda":
        return "torch sees no GPU here"
    _, configuration, obstacle = _look_up(_index(device), _name(dtype), d_k, d_v, True)
    return f"{configuration} {obstacle}" if obstacle else None


def _look_up(index: int, dtype: str, d_k: int, d_v: int, verified_only: bool) -> tuple[Plan | None, str, str]:
    """The plan if there is one, the configuration that was looked up, and what stands in the way."""
    arch = "sm_{}{}".format(*torch.cuda.get_device_capability(index))
    version = triton_version()
    configuration = f"Triton {version}, {arch}, {dtype}, d_k={d_k}, d_v={d_v}"
    plan = verified.find(version, arch, dtype, d_k) if version and d_k == d_v else None
    if plan is None:
        return None, configuration, "is not in the table of Triton kernels"
    if verified_only and not plan.verified:
        obstacle = (
            "was never compared with the reference on a GPU; `python -m sleep_kernels.self_test --write` does that and "
            "enters it in the table"
        )
        return None, configuration, obstacle
    return plan, configuration, ""


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def interpreting() -> bool:
    """Whether Triton interprets its kernels, on CPU tensors too (TRITON_INTERPRET=1 before its first import)."""
    import triton

    return bool(triton.knobs.runtime.interpret)
