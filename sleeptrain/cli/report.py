"""`sleeptrain report`: curves and tables of any runs, in one HTML file."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from sleeptrain.cli.help import add_command
from sleeptrain.errors import UserError

EXAMPLES = (
    "sleeptrain report runs/rule110-tiny",
    "sleeptrain report runs/rule110-tiny runs/seeds --out runs/report.html",
    "sleeptrain report runs/seeds --json",
)


def add(subparsers: Any) -> None:
    """Add this command to the program's parser."""
    description = (
        "Write curves of loss, learning rate and gradient norm, loss by window and results on held-out data of one or more runs into "
        "one HTML file, which needs no other file and no network, and the same as Markdown beside it. Runs that are damaged are named."
    )
    parser = add_command(subparsers, "report", "curves and tables of runs", description, EXAMPLES)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, or one of several seeds")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the HTML file (default: report.html in the run folder; of several runs, in the folder that holds them)",
    )
    parser.add_argument("--json", action="store_true", help="print the table as JSON instead, and write no file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns 0."""
    from sleeptrain.study.curves import curves_page, read_runs, summary_of
    from sleeptrain.study.page import write_page

    common = os.path.commonpath([os.path.abspath(name) for name in args.runs])
    out = args.out or Path(os.path.relpath(common)) / "report.html"
    if out.suffix not in (".html", ".htm"):
        raise UserError(f"--out {out}: must end in .html")
    logs, broken = read_runs(args.runs)
    for line in broken:
        print(f"warning: {line}", file=sys.stderr)
    if args.json:
        print(json.dumps({"runs": [summary_of(log) for log in logs], "broken": broken}, indent=1))
        return 0
    for path in write_page(curves_page(logs, broken), out):
        print(path)
    return 0
