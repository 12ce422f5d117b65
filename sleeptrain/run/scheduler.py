"""The number of SLURM's job that this process belongs to."""

from __future__ import annotations

import os


def job_number() -> str | None:
    """The number by which SLURM's commands know this job; None outside of SLURM.

    A job of an array is ARRAY_INDEX. SLURM_JOB_ID of the one that starts last is the array's, which `scancel` and `scontrol` take for
    all its jobs.
    """
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array and index else os.environ.get("SLURM_JOB_ID")
