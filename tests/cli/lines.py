"""Runs several command lines in one spawned process, so that torch and DeepSpeed are imported once."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.distributed import run

TINY = [
    "model.width=16", "model.attention.heads=2", "model.attention.kv_heads=1", "model.attention.head_dim=8", "model.attention.rotary=0.5",
    "model.deltanet.key_heads=1", "model.deltanet.value_heads=2", "model.deltanet.head_dim=8", "model.mlp.hidden=16",
]  # fmt: skip
"""The smallest model that has every part."""


@dataclass(frozen=True)
class Line:
    """Exit status and output of one command line."""

    status: int
    out: str
    err: str


def run_lines(lines: Sequence[Sequence[str]], folder: Path, timeout: float = 300, world: int = 1) -> list[Line]:
    """Run command lines (their words after `sleeptrain`) in order in `folder`, on `world` processes; returns what rank 0 printed."""
    return run(_run_here, world, [list(words) for words in lines], str(folder), timeout=timeout)[0]


def run_named(lines: Mapping[str, Sequence[str]], folder: Path, timeout: float = 300) -> dict[str, Line]:
    """`run_lines` of command lines by name; returns the results by name."""
    return dict(zip(lines, run_lines(list(lines.values()), folder, timeout), strict=True))


def _run_here(lines: list[list[str]], folder: str) -> list[Line]:
    from sleeptrain.cli.main import main
    from sleeptrain.parallel import process

    # DeepSpeed keeps the first process group for the lifetime of the process.
    process.shutdown_distributed = lambda: None
    os.chdir(folder)
    results = []
    for words in lines:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(words)
        results.append(Line(status, out.getvalue(), err.getvalue()))
    return results
