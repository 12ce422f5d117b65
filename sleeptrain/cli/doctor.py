"""`sleeptrain doctor`: what works on this machine, and how to fix what does not."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from contextlib import nullcontext
from typing import Any

from sleeptrain.cli.help import add_command

DESCRIPTION = """\
Check what training needs on this machine: package versions, devices, a process group, the kernels against their
float64 reference, shards, free space. Exit status 0 if training on the CPU works, else 1."""
EXAMPLES = ["sleeptrain doctor", "sleeptrain doctor --json"]


def add(subparsers: Any) -> None:
    """Add this command to the program's parser."""
    parser = add_command(subparsers, "doctor", "check what works on this machine", DESCRIPTION, EXAMPLES)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run all checks and print their results. Returns 0 if all that training on the CPU needs are ok, else 1."""
    from sleeptrain.cli.checks import CHECKS, CheckResult, run_check

    results: list[CheckResult] = []
    with _spinner() as status:
        for check in CHECKS:
            if status is not None:
                status.update(f"{check.name} ...")
            results += run_check(check)
    broken = [result for result in results if result.needed and result.status != "ok"]
    if args.json:
        body = {"ok": not broken, "checks": [dataclasses.asdict(result) for result in results]}
        print(json.dumps(body, indent=1))
    else:
        from sleeptrain.evaluate.table import print_table

        print_table(["", "status", "found", "advice"], [[r.name, r.status, r.detail, r.advice] for r in results])
        names = ", ".join(result.name for result in broken)
        print(f"training on the CPU does not work here: {names}" if broken else "training on the CPU works here")
    return 1 if broken else 0


def _spinner() -> Any:
    """A context manager that yields a spinner on the terminal's error stream, or None if there is no terminal."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status("")
