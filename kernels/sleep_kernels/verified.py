"""Launch configurations of the Triton kernels, pinned in verified.json. Pure Python.

There is no autotuning at run time: a configuration is looked up by (Triton version, architecture, dtype, d), because the
same kernel source has been correct under one Triton version and miscompiled under another. Whether a GPU has compared outputs
and all gradients with the float64 reference, and from which assembler, is in verdicts.py.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("verified.json")
KERNELS = (
    "solve_tril",
    "chunk_fwd",
    "chunk_recompute",
    "chunk_bwd_dh",
    "chunk_bwd_dqk",
    "chunk_bwd_dqk_grouped",
    "norm",
    "delta_inputs",
)


@dataclass(frozen=True)
class KernelLaunch:
    """Launch parameters of one kernel."""

    warps: int
    stages: int
    block: int
    """Tile size: columns of d_k for solve_tril, rows for norm, tokens for delta_inputs, else columns of d_v."""
    width: int = 0
    """Columns of d_k that one program of chunk_bwd_dqk computes."""


@dataclass(frozen=True)
class LaunchConfig:
    """Launch parameters of all kernels for one dtype and d."""

    solve_tril: KernelLaunch
    chunk_fwd: KernelLaunch
    chunk_recompute: KernelLaunch
    chunk_bwd_dh: KernelLaunch
    chunk_bwd_dqk: KernelLaunch
    chunk_bwd_dqk_grouped: KernelLaunch
    """chunk_bwd_dqk with several value heads per key head; accumulating over them takes more registers."""
    norm: KernelLaunch
    """Forward and backward of gated_rms_norm."""
    delta_inputs: KernelLaunch
    """Forward and backward of delta_inputs."""
    precision: str
    """Precision of products of float32 operands: "tf32x3" or "ieee"."""


@functools.cache
def table() -> tuple[dict[str, Any], ...]:
    """The entries of verified.json."""
    return tuple(json.loads(TABLE.read_text())["entries"])


@functools.cache
def find(triton: str, arch: str, dtype: str, d: int) -> LaunchConfig | None:
    """The configuration for a Triton version ("3.7.1"), architecture ("sm_90"), dtype ("bfloat16") and d_k = d_v, or None."""
    entry = find_entry(triton, arch, dtype, d)
    return None if entry is None else parse(entry)


def find_entry(triton: str, arch: str, dtype: str, d: int) -> dict[str, Any] | None:
    """The entry of the table that `find` converts."""
    for entry in table():
        if (entry["triton"], entry["arch"], entry["dtype"], entry["d"]) == (triton, arch, dtype, d):
            return entry
    return None


def parse(entry: dict[str, Any]) -> LaunchConfig:
    """Convert an entry of the table to a LaunchConfig."""
    launches = {name: KernelLaunch(**entry["launches"][name]) for name in KERNELS}
    return LaunchConfig(**launches, precision=entry["precision"])


def interpreted() -> LaunchConfig:
    """The configuration for Triton's interpreter. Tiles are small, so that loops over tiles run twice for d = 32."""
    launches = dict.fromkeys(KERNELS, KernelLaunch(warps=1, stages=1, block=16, width=16))
    launches["delta_inputs"] = KernelLaunch(warps=1, stages=1, block=32)
    return LaunchConfig(**launches, precision="ieee")
