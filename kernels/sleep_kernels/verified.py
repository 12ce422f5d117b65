"""Which Triton kernels may run where, and how they are launched: the pinned table verified.json. Pure Python.

Nothing is tuned at run time: a launch is looked up by (Triton version, architecture, dtype, d), since the same source
has been right under one and wrong under another. An entry is `verified_on_gpu` once `python -m sleep_kernels.self_test`
has compared outputs and all gradients with the float64 reference on such a GPU.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("verified.json")
KERNELS = ("invert", "score", "sweep", "replay", "reverse", "remainder", "remainder_grouped", "norm", "prep")


@dataclass(frozen=True)
class Launch:
    """How one kernel is launched."""

    warps: int
    stages: int
    block: int  # taken at once: columns of d_v; of d_k for `invert` and `score`; rows for `norm`, tokens for `prep`
    width: int = 0  # columns of d_k a program of `remainder` takes


@dataclass(frozen=True)
class Plan:
    """The launches of all kernels for one dtype and d, and the precision of its float32 products ("tf32x3", "ieee")."""

    invert: Launch
    score: Launch
    sweep: Launch
    replay: Launch
    reverse: Launch
    remainder: Launch
    remainder_grouped: Launch  # with several value heads a key head, whose sums take registers
    norm: Launch  # both directions, as `prep`
    prep: Launch
    precision: str
    verified: bool


@functools.cache
def table() -> tuple[dict[str, Any], ...]:
    """The entries of verified.json."""
    return tuple(json.loads(TABLE.read_text())["entries"])


@functools.cache
def find(triton: str, arch: str, dtype: str, d: int) -> Plan | None:
    """The plan for a Triton version ("3.7.1"), architecture ("sm_90"), dtype ("bfloat16") and d_k = d_v, or None."""
    for entry in table():
        if (entry["triton"], entry["arch"], entry["dtype"], entry["d"]) == (triton, arch, dtype, d):
            return parse(entry)
    return None


def parse(entry: dict[str, Any]) -> Plan:
    """An entry of the table as a plan."""
    launches = {name: Launch(**entry["launches"][name]) for name in KERNELS}
    return Plan(**launches, precision=entry["precision"], verified=entry["verified_on_gpu"])


def interpreted() -> Plan:
    """The plan for Triton's interpreter, where nothing but correctness matters; loops over blocks run twice for d = 32."""
    launches = dict.fromkeys(KERNELS, Launch(warps=1, stages=1, block=16, width=16))
    launches["prep"] = Launch(warps=1, stages=1, block=32)
    return Plan(**launches, precision="ieee", verified=True)
