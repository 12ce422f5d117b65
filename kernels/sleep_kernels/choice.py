"""Whether an operator runs in Triton: asks the table, and says once which way it went and why. Imports no Triton."""

import functools
import logging
from importlib import metadata

import torch

from sleep_kernels import verified
from sleep_kernels.verified import Plan

_LOG = logging.getLogger("sleep_kernels")


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
    index = torch.cuda.current_device() if device.index is None else device.index
    return _for_gpu(operator, index, str(dtype).removeprefix("torch."), d_k, d_v, verified_only)


@functools.cache
def _for_gpu(operator: str, index: int, dtype: str, d_k: int, d_v: int, verified_only: bool) -> Plan | None:
    arch = "sm_{}{}".format(*torch.cuda.get_device_capability(index))
    version = triton_version()
    configuration = f"Triton {version}, {arch}, {dtype}, d_k={d_k}, d_v={d_v}"
    plan = verified.find(version, arch, dtype, d_k) if version and d_k == d_v else None
    if plan is None:
        _LOG.warning("%s runs in plain torch: %s is not in the table of Triton kernels", operator, configuration)
        return None
    if verified_only and not plan.verified:
        _LOG.warning(
            "%s runs in plain torch: %s was never compared with the reference on a GPU; "
            "`python -m sleep_kernels.self_test --write` does that and enters it in the table",
            operator,
            configuration,
        )
        return None
    _LOG.info("%s runs in Triton: %s", operator, configuration)
    return plan


def interpreting() -> bool:
    """Whether Triton interprets its kernels, on CPU tensors too (TRITON_INTERPRET=1 before its first import)."""
    import triton

    return bool(triton.knobs.runtime.interpret)
