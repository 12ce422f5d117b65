"""From checked recipes to the script of a job: what `sleeptrain launch` and `sleeptrain study --cluster` share."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleeptrain.errors import UserError

if TYPE_CHECKING:
    from sleep_launch.script import JobScript
    from sleeptrain.cli.cluster import ClusterFile
    from sleeptrain.train.job import Job

OPTIMIZER_BYTES = 12
"""Bytes of a parameter in a checkpoint: fp32 weight and two moments."""


@dataclass(frozen=True)
class JobRun:
    """A run that a job would train."""

    resolved: Any
    """The recipe with absolute paths of data and run folder, since a job reads it from another folder."""
    folder: Path
    parameters: int
    notes: tuple[str, ...] = ()
    """The step at which it continues and what has changed, and kernels that it will do without."""


def plan_run(name: str, resolved: Any, folder: Path, world: int, cluster: ClusterFile) -> JobRun:
    """Check mesh, batch and memory of a recipe on `world` ranks, and count its parameters. Raises UserError.

    The memory is checked where the cluster file says how large a GPU is.
    """
    from sleeptrain import plan
    from sleeptrain.recipe import check_batch
    from sleeptrain.recipe.continuation import continuation_lines
    from sleeptrain.train.layout import resolve_layout

    batch = check_batch(resolved, world)
    completed, data_layout = plan.resolve_data(resolved)
    if cluster.hardware is not None:
        memory = plan.DeviceMemory(cluster.hardware.bytes, "a GPU of the cluster", gpu=True)
        completed, _ = plan.resolve_recompute(completed, batch, data_layout, memory)
    layout = resolve_layout(completed.value, data_layout.windows, batch, data_layout.sizes)
    if cluster.hardware is not None:
        layout, _ = plan.resolve_auto(layout, data_layout, memory)
        if not memory.holds(found := plan.make_plan(layout, data_layout)):
            raise UserError(
                f"{name} needs {plan.size(plan.needed(found))} a process on {world} processes, more than the {memory}; "
                "`sleeptrain plan` with the same words and --cluster says what would make it fit"
            )
    value = dataclasses.replace(resolved.value, data=resolved.value.data.located(), run_dir=str(folder))
    located = dataclasses.replace(resolved, value=value)
    notes = [*continuation_lines(completed, folder, layout), *_unverified_kernels(completed.value, cluster)]
    return JobRun(located, folder, plan.parameter_ownership(layout).total, tuple(notes))


def _unverified_kernels(job: Job, cluster: ClusterFile) -> Iterator[str]:
    """A line where no GPU can run the fused kernels that the recipe would use, since none has verified them."""
    from sleep_kernels.verdicts import right_somewhere

    wanted = ({"fp32": "float32", "bf16": "bfloat16"}[job.train.precision], job.model.deltanet.head_dim)
    if not cluster.nodes.gpus or job.train.kernels != "auto" or "G" not in job.model.pattern:
        return
    if not right_somewhere(*wanted):
        yield (
            f"train.kernels = auto will run plain torch: no GPU has verified the fused kernels for {wanted[0]} and heads of {wanted[1]}; "
            "on a node with a GPU: python -m sleep_kernels.self_test --write"
        )


def job_script(cluster: ClusterFile, folder: Path, runs: Sequence[JobRun], nodes: int) -> JobScript:
    """The script of a job on `nodes` nodes, with files of its own in `folder`, which is in that of the run or the study."""
    from sleep_launch.script import JobScript

    return JobScript(
        name=folder.parents[1].name,
        folder=str(folder),
        runs=tuple(str(run.folder) for run in runs),
        workdir=str(Path.cwd()),
        count=nodes,
        lead=max(_lead(cluster, run.folder) for run in runs),
        space=max(run.parameters * OPTIMIZER_BYTES * (run.resolved.value.checkpoint.keep + 1) for run in runs),
        python=cluster.software.python or sys.executable,
        slurm=cluster.slurm,
        nodes=cluster.nodes,
        software=cluster.software,
        restart=cluster.restart,
    )


def _lead(cluster: ClusterFile, folder: Path) -> int:
    """Seconds before the time limit at which the run in `folder` is asked to stop."""
    from sleep_launch.cluster import time_seconds
    from sleep_launch.lead import lead_seconds

    slurm, measured = cluster.slurm, lead_seconds(folder)
    if measured > time_seconds(slurm.time) / 2:
        raise UserError(
            f"slurm.time {slurm.time}: a step and a save of {folder} have taken so long that it must be asked to stop "
            f"{measured} s before the limit, which is more than half of it; give a longer time or a smaller checkpoint.every"
        )
    return max(slurm.lead, measured)


def refuse_second_job(parent: Path) -> None:
    """Raise UserError where the last job of a run or a study is still in the queue."""
    from sleep_launch.submit import last_job

    job = last_job(parent)
    if job is not None and (state := job.state()):
        raise UserError(f"{parent} has job {job.number}, which is {state}; cancel it first: sleeptrain job cancel {parent}")  # fmt: skip
