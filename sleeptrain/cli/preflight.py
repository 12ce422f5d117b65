"""`sleeptrain preflight`: check and measure the nodes of a job; every task of the job runs it, and job scripts do so first."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from sleeptrain.cli.help import add_command
from sleeptrain.errors import RunFailed, UserError

DESCRIPTION = """\
Check and measure the nodes of a job of SLURM. Every task runs it and writes rank-00000.json and so on into FOLDER: versions,
clock, shared and local folders, free space, GPUs, kernels, speed of a matrix product and of all-reduces inside and between nodes.
--show prints the verdict on every node and the measurements. Exit status of --show: 0 if every node passes, else 1."""
EXAMPLES = ["sleeptrain preflight runs/nodes", "sleeptrain preflight runs/nodes --show"]


def add(subparsers: Any) -> None:
    """Add this command to the program's parser."""
    parser = add_command(subparsers, "preflight", "check the nodes of a job", DESCRIPTION, EXAMPLES)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="a folder that all nodes share, for the results")
    parser.add_argument("--tasks", type=int, metavar="N", help="tasks of a node (default: those that were started)")
    parser.add_argument("--gpus", type=int, default=0, metavar="N", help="GPUs that a node must have (default: 0)")
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="the run folder, in which files are written")
    parser.add_argument(
        "--space",
        type=int,
        default=0,
        metavar="BYTES",
        help="bytes that it must have for checkpoints, those that lie there already included",
    )
    parser.add_argument("--local", metavar="DIR", help="a folder on a local disk that must be writable")
    parser.add_argument("--show", action="store_true", help="print the results of an earlier run of the tasks")
    parser.add_argument("--json", action="store_true", help="with --show: print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns 0, and with --show 1 if a node fails. A task whose node fails has done its work: 0."""
    if args.show:
        return show(args.folder, args.json)
    from sleeptrain.cli.checks.node import check_node, measure

    result = check_node(args)
    _write(args.folder, result)
    # Written twice: where the process group hangs or ends this process, the first result stands.
    measure(result)
    _write(args.folder, result)
    if "SLURM_JOB_ID" not in os.environ and result["world"] == 1:
        return show(args.folder, args.json)
    return 0


def show(folder: Path, as_json: bool) -> int:
    """Print the verdict on every node that has results, and what was measured."""
    from sleep_launch.verdict import judge, read_results, speed

    results = read_results(folder)
    if not results:
        raise UserError(f"{folder} holds no results of preflight; run `srun sleeptrain preflight {folder}` first")
    nodes = list(dict.fromkeys(str(each["node"]) for each in results))
    verdicts = judge(folder, nodes)
    if as_json:
        print(json.dumps({"nodes": verdicts, "results": results}, indent=1))
        return int(any(verdicts.values()))
    from sleeptrain.evaluate.table import print_table

    rows = []
    for each in results:
        speeds = [f"{name} {speed(value, name)}" for name, value in each["speeds"].items()]
        facts = [f"{name} {value}" for name, value in each["facts"].items()]
        reasons = verdicts[each["node"]]
        rows.append([str(each["rank"]), each["node"], "failed" if reasons else "ok", ", ".join(speeds), ", ".join(facts)])  # fmt: skip
    print_table(("rank", "node", "", "measured", "versions"), rows)
    for node, reasons in verdicts.items():
        for reason in reasons:
            print(f"{node}: {reason}")
    return int(any(verdicts.values()))


def _write(folder: Path, result: dict[str, Any]) -> None:
    path = folder / f"rank-{result['rank']:05}.json"
    staged = path.with_suffix(".tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staged.write_text(json.dumps(result, indent=1) + "\n")
        staged.replace(path)
    except OSError as error:
        raise RunFailed(f"{path} cannot be written on {result['node']}: {error.strerror}") from None
