"""Command lines run one after the other in one process of their own: importing what trains takes seconds, once is enough."""

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
"""The smallest sizes that keep every part."""


@dataclass(frozen=True)
class Line:
    """What one command line said."""

    status: int
    out: str
    err: str


def run_lines(lines: Sequence[Sequence[str]], folder: Path, timeout: float = 300) -> list[Line]:
    """The words after `sleeptrain` of each command line, run in order in `folder`."""
    return run(_run_here, 1, [list(words) for words in lines], str(folder), timeout=timeout)[0]


def run_named(lines: Mapping[str, Sequence[str]], folder: Path, timeout: float = 300) -> dict[str, Line]:
    """The same, by name."""
    return dict(zip(lines, run_lines(list(lines.values()), folder, timeout), strict=True))


def _run_here(lines: list[list[str]], folder: str) -> list[Line]:
    from sleeptrain.cli.main import main
    from sleeptrain.parallel import process

    # DeepSpeed keeps the group it joined first for as long as the process lives.
    process.shutdown_distributed = lambda: None
    os.chdir(folder)
    found = []
    for words in lines:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(words)
        found.append(Line(status, out.getvalue(), err.getvalue()))
    return found
