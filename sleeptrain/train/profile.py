"""Profiles of single steps: a trace for https://ui.perfetto.dev, and a table of the operators that take most time."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

_LOG = logging.getLogger("sleeptrain")
FOLDER = "profile"
"""The folder of the profiles in the run folder."""
ROWS = 40
"""Rows of the table."""


@contextmanager
def profiled(steps: Sequence[int], step: int, folder: Path, rank: int) -> Iterator[None]:
    """Profile the block if `step` is one of `steps`. Every rank writes its trace and table below `folder`.

    The trace has the work of the CPU, and of the GPU if there is one; the table sums an operator's own time over its calls. A
    profile that cannot be written is a warning: training goes on.
    """
    if step not in steps:
        yield
        return
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    with profile(activities=activities) as measured:
        yield
    order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    name, target = f"step-{step}.rank-{rank}", folder / FOLDER
    try:
        target.mkdir(exist_ok=True)
        measured.export_chrome_trace(str(target / f"{name}.json.gz"))
        (target / f"{name}.txt").write_text(measured.key_averages().table(sort_by=order, row_limit=ROWS))
    except OSError as error:
        _LOG.warning("train.profile: the profile of step %d is not written: %s", step, error)
