"""A study as an array of jobs of SLURM: one for each run that is not done, and one that writes the report behind them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sleeptrain.errors import UserError

if TYPE_CHECKING:
    from sleep_launch.script import JobScript
    from sleeptrain.cli.cluster import ClusterFile
    from sleeptrain.study.points import Point


def submit_study(args: argparse.Namespace, points: Sequence[Point], base: Path) -> int:
    """Submit the runs that are not done. `base`: the folder of the study's runs. Returns 0; raises UserError before anything is written."""
    from sleep_launch.script import render
    from sleep_launch.submit import free_folder, newest_job, prepare, submit
    from sleeptrain.cli.cluster import load_cluster
    from sleeptrain.cli.launch import located
    from sleeptrain.run.environment import revision

    cluster = load_cluster(args.cluster, args.set).value
    left = [point for point in points if point.left()]
    if not left:
        print("every run is done; `--report` makes the report")
        return 0
    base = base.absolute()
    words = ["study", args.study, *args.overrides]
    job = _script(cluster, points, left, free_folder(base), (*words, "--index"))
    if args.dry_run:
        print(render(job), end="")
        print(f"Dry run: {len(left)} of {len(points)} runs would be submitted; nothing was written.", file=sys.stderr)
        return 0
    if earlier := newest_job(base):
        raise UserError(f"{base} has job {earlier.number}, which is {earlier.state()}; cancel it first: sleeptrain job cancel {base}")  # fmt: skip
    prepare(job, [located(p.resolved, p.folder.absolute()).to_yaml() for p in points], revision(), [*words, "--report"])
    submitted = submit(job)
    print(
        f"{len(left)} of {len(points)} runs are submitted as array {submitted.number}; a job behind them writes the report"
    )
    print(f"  sleeptrain job status {base}")
    return 0


def _script(
    cluster: ClusterFile, points: Sequence[Point], left: Sequence[Point], folder: Path, then: tuple[str, ...]
) -> JobScript:
    """The job of the runs that are left. Raises UserError where they do not fit the nodes in the same way."""
    from sleep_launch.script import JobScript

    ranks = sorted({point.processes for point in left})
    tasks = min(cluster.nodes.tasks, ranks[0])
    if len(ranks) > 1 or ranks[0] % tasks:
        raise UserError(
            f"the runs of this study need {', '.join(map(str, ranks))} processes; the jobs of an array have the same number, which is a "
            f"multiple of nodes.tasks ({cluster.nodes.tasks}) or less: change mesh in the study, or submit the sizes as studies of their own"
        )
    nodes = replace(cluster.nodes, tasks=tasks, gpus=min(cluster.nodes.gpus, tasks))
    return JobScript(
        name=folder.parents[1].name,
        folder=str(folder),
        runs=tuple(str(point.folder.absolute()) for point in points),
        workdir=str(Path.cwd()),
        count=ranks[0] // tasks,
        lead=cluster.slurm.lead,
        space=0,
        python=cluster.software.python or sys.executable,
        slurm=cluster.slurm,
        nodes=nodes,
        software=cluster.software,
        restart=cluster.restart,
        array=tuple(point.index for point in left),
        then=then,
    )
