"""`sleeptrain study`: a grid of runs, one after another or by index, and the report of what they show."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleeptrain.cli.help import add_command
from sleeptrain.errors import CONTINUE, UserError

if TYPE_CHECKING:
    from sleeptrain.cli.cluster import ClusterFile
    from sleeptrain.study.config import Study
    from sleeptrain.study.points import Point

EXAMPLES = (
    "sleeptrain study rule110-tiny --dry-run",
    "sleeptrain study rule110-tiny 'axes={train.seed: [0, 1, 2]}' --dry-run --json",
    "sleeptrain study rule110-tiny --report",
)


def add(subparsers: Any) -> None:
    """Add this command to the program's parser."""
    description = (
        "Run every point of a grid of recipes as `sleeptrain train`, one after another, and write a report over all of them. "
        "Runs that are done are not repeated, and half ones continue; a run that fails does not stop the others. "
        "Everything is checked before the first run."
    )
    parser = add_command(subparsers, "study", "a grid of runs and its report", description, EXAMPLES)
    parser.add_argument("study", metavar="STUDY", help="a YAML file, or the name of one in configs/study")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="changes to the study, such as set.train.steps=100",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="list the runs with their commands, and stop")
    what.add_argument("--index", type=int, metavar="I", help="run the I-th run only, from 0 on, and make no report")
    what.add_argument("--report", action="store_true", help="make the report of what is there, and run nothing")
    parser.add_argument("--cluster", metavar="NAME", help="submit the runs that are left to SLURM as an array of jobs")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="with --cluster: a change to the cluster file")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the list of runs or the report as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns 0, 1 if a run failed, 75 if one can be continued or a signal asked to stop."""
    from sleeptrain.run.folder import CONFIG, is_run_config
    from sleeptrain.study.config import load_study
    from sleeptrain.study.points import base_folder, check_data, make_points

    if args.cluster and (args.index is not None or args.report):
        raise UserError(
            "--cluster submits jobs, which run each index and the report themselves; leave out --index and --report"
        )
    cluster = _cluster(args) if args.cluster else None
    study = load_study(args.study, args.overrides).value
    folder = base_folder(study, args.study)
    if is_run_config(folder / CONFIG):
        raise UserError(
            f"{folder} holds a run, and the study would put others into it; name another folder with run_dir=..."
        )
    points = make_points(study, args.study)
    if args.report:
        return _report(args, study, points)
    complete, errors = check_data(points)
    if args.dry_run and cluster is None:
        for line in errors:
            print(f"warning: {line}", file=sys.stderr)
        return _list(args, points if errors else complete)
    if errors:
        raise UserError(errors)
    if cluster is not None:
        from sleeptrain.cli.study_jobs import submit_study

        return submit_study(args, cluster, complete, folder)
    if args.index is not None and not 0 <= args.index < len(points):
        raise UserError(f"--index {args.index}: the study has {len(points)} runs, from 0 to {len(points) - 1}")
    chosen = complete if args.index is None else [complete[args.index]]
    status = _run(chosen, len(points))
    if args.index is None and status != CONTINUE:
        return max(status, _report(args, study, points))
    return status


def _cluster(args: argparse.Namespace) -> ClusterFile:
    """The cluster file; what it changes in every recipe is put before the changes of the command line, for the jobs' commands too."""
    from sleeptrain.cli.cluster import load_job_cluster

    cluster = load_job_cluster(args.cluster, args.set).value
    args.overrides = [*(f"set.{word}" for word in cluster.recipe), *args.overrides]
    return cluster


def _list(args: argparse.Namespace, points: Sequence[Point]) -> int:
    """Print every run with the commands that are left of it."""
    if args.json:
        runs = [
            {
                "index": p.index,
                "folder": str(p.folder),
                "axes": dict(p.labels),
                "done": not p.left(),
                "commands": p.left(),
            }
            for p in points
        ]
        print(json.dumps({"runs": runs}, indent=1))
        return 0
    for point in points:
        print(f"{point.index}  {point.folder}{'' if point.left() else '  done'}")
        for command in point.left():
            print(f"     {shlex.join(command)}")
    return 0


def _run(points: Sequence[Point], total: int) -> int:
    """Run these points, then list the failures. Returns the exit status."""
    from sleeptrain.study.runner import run_points

    failures, stopped = run_points(points, total, lambda line: print(line, file=sys.stderr, flush=True))
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if stopped or (failures and all(failure.again for failure in failures)):
        print("the same command continues the study", file=sys.stderr)
        return CONTINUE
    return 1 if failures else 0


def _report(args: argparse.Namespace, study: Study, points: Sequence[Point]) -> int:
    """Write the report of the runs that are done into the folder of the study's runs. Returns 0."""
    from sleeptrain.study.page import write_page
    from sleeptrain.study.points import base_folder
    from sleeptrain.study.results import read_results
    from sleeptrain.study.study_report import StudyReport

    report = StudyReport(study, Path(args.study).stem, read_results(points), len(points))
    out = base_folder(study, args.study) / "report.html"
    found = json.dumps(report.json(), indent=1)
    paths = write_page(report.page(), out)
    out.with_suffix(".json").write_text(found + "\n")
    for path in [] if args.json else [*paths, out.with_suffix(".json")]:
        print(path)
    if args.json:
        print(found)
    return 0
