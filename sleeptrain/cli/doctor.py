"""`sleeptrain doctor`: what works on this machine, and what to do about the rest."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

from sleeptrain.cli.help import add_command

DESCRIPTION = """\
Try what training needs on this machine: versions, devices, a process group, the kernels against their float64
reference, shards, space. Exit status 0 if everything that training on the CPU needs works, else 1."""
EXAMPLES = ["sleeptrain doctor", "sleeptrain doctor --json"]


def add(subparsers: Any) -> None:
    """Add this verb to the program's parser."""
    parser = add_command(subparsers, "doctor", "what works on this machine", DESCRIPTION, EXAMPLES)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Examines; 0 if everything needed works, else 1."""
    from rich.console import Console

    from sleeptrain.cli.checks import CHECKS, examine

    with Console(stderr=True).status("") if sys.stderr.isatty() else _Silent() as status:
        results = []
        for check in CHECKS:
            status.update(f"{check.name} ...")
            results += examine(check)
    broken = [result for result in results if result.needed and result.status != "ok"]
    if args.json:
        body = {"ok": not broken, "checks": [dataclasses.asdict(result) for result in results]}
        print(json.dumps(body, indent=1))
    else:
        from sleeptrain.cli.table import print_table

        print_table(["", "status", "found", "advice"], [[r.name, r.status, r.detail, r.advice] for r in results])
        names = ", ".join(result.name for result in broken)
        print(f"training on the CPU does not work here: {names}" if broken else "training on the CPU works here")
    return 1 if broken else 0


class _Silent:
    """What stands in for the spinner where there is no terminal."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, text: str) -> None:
        """Shows nothing."""
