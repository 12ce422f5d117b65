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
    from sleeptrain.cli.cluster import ClusterFile
    from sleeptrain.study.points import Point


def submit_study(args: argparse.Namespace, cluster: ClusterFile, points: Sequence[Point], base: Path) -> int:
    """Submit the runs that are not done. `base`: the folder of the study's runs. Returns 0; raises UserError before anything is written."""
    from sleep_launch.script import render
    from sleep_launch.submit import free_folder, prepare, submit
    from sleeptrain.cli.job_script import job_script, plan_run, refuse_second_job
    from sleeptrain.run.environment import revision

    left, base = [point for point in points if point.left()], base.absolute()
    if not left:
        print("every run is done; `--report` makes the report")
        return 0
    cluster, nodes = _divided(cluster, left)
    runs = [plan_run(str(p.folder), p.resolved, p.folder.absolute(), p.processes, cluster) for p in points]
    words = ["study", args.study, *args.overrides]
    job = replace(
        job_script(cluster, free_folder(base), runs, nodes),
        array=tuple(point.index for point in left),
        # Not `study --index`, which reads the study again: an edit gives an index to another run.
        then=tuple(tuple(command[1:]) for point in points if (command := point.eval_command) is not None),
    )
    if args.dry_run:
        print(render(job), end="")
        print(f"Dry run: {len(left)} of {len(points)} runs would be submitted; nothing was written.", file=sys.stderr)
        return 0
    refuse_second_job(base)
    prepare(job, [run.resolved.to_yaml() for run in runs], revision(), [*words, "--report"])
    number = submit(job).number
    print(f"{len(left)} of {len(points)} runs are submitted as array {number}; a job behind them writes the report")
    print(f"  sleeptrain job status {base}")
    return 0


def _divided(cluster: ClusterFile, left: Sequence[Point]) -> tuple[ClusterFile, int]:
    """The cluster with as many tasks of a node as a run can use, and the number of nodes of a run.

    Raises UserError where the runs do not use nodes in the same way.
    """
    ranks = sorted({point.processes for point in left})
    tasks = min(cluster.nodes.tasks, ranks[0])
    if len(ranks) > 1 or ranks[0] % tasks:
        raise UserError(
            f"the runs of this study need {', '.join(map(str, ranks))} processes; the jobs of an array have the same number, which is a "
            f"multiple of nodes.tasks ({cluster.nodes.tasks}) or less: change mesh in the study, or submit the sizes as studies of their own"
        )
    nodes = replace(cluster.nodes, tasks=tasks, gpus=min(cluster.nodes.gpus, tasks))
    return replace(cluster, nodes=nodes), ranks[0] // tasks
