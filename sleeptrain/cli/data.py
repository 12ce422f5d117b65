"""`sleeptrain data`: make shards from a task file, and look at them."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from sleeptrain.cli.help import add_verb
from sleeptrain.config import UserError

EXAMPLES = {
    "data": [
        "sleeptrain data build rule110-tiny --out runs/data/rule110-tiny",
        "sleeptrain data inspect runs/data/rule110-tiny",
    ],
    "build": [
        "sleeptrain data build rule110-tiny --out runs/data/rule110-tiny",
        "sleeptrain data build rule110 --out runs/data/rule110-short train=256 test=64 seed=1",
    ],
    "inspect": [
        "sleeptrain data inspect runs/data/rule110-tiny",
        "sleeptrain data inspect runs/data/rule110-tiny --samples 4",
        "sleeptrain data inspect runs/data/rule110-tiny --json",
    ],
}


def add(subparsers: Any) -> None:
    """Add this verb to the program's parser."""
    parser = add_verb(subparsers, "data", "make or look at shards", "Make shards, or look at them.", EXAMPLES["data"])
    actions = parser.add_subparsers(title="actions", dest="action", required=True, metavar="ACTION")

    build = add_verb(
        actions, "build", "write the shards of a task",
        "Write the shards of a task and their manifest. The same request gives the same bytes; a folder that already\n"
        "holds them is left alone.", EXAMPLES["build"],
    )  # fmt: skip
    build.add_argument("task", help="a task file, the name of one in configs/task, or a task")
    build.add_argument(
        "overrides", nargs="*", metavar="key=value", help="parameters of the task, and train, test, seed"
    )
    build.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    build.add_argument("--json", action="store_true", help="print the manifest")
    build.set_defaults(run=run_build)

    inspect = add_verb(
        actions, "inspect", "show what a folder of shards holds",
        "Show the task, the layout, the counts and the first samples of a folder of shards.", EXAMPLES["inspect"],
    )  # fmt: skip
    inspect.add_argument("path", metavar="DIR", help="folder of shards")
    inspect.add_argument(
        "--samples", type=int, default=2, metavar="N", help="samples of each split to show (default 2)"
    )
    inspect.add_argument("--json", action="store_true", help="print the manifest and the samples as JSON")
    inspect.set_defaults(run=run_inspect)


def run_build(args: argparse.Namespace) -> int:
    """Builds; returns 0."""
    parameters = parse_parameters(args.overrides)
    from sleeptrain.data import build as builder

    manifest = _with_progress(lambda show: builder.build(args.task, args.out, parameters, progress=show), args.json)
    if args.json:
        print(json.dumps(manifest.body, indent=1))
        return 0
    counts = ", ".join(
        f"{split} {entry['samples']:,} samples" for split, entry in sorted(manifest.splits.items(), reverse=True)
    )
    print(f"{args.out}: {manifest.task}, {counts}")
    return 0


def run_inspect(args: argparse.Namespace) -> int:
    """Shows; returns 0."""
    if args.samples < 0:
        raise UserError(f"--samples {args.samples}: must not be negative")
    from sleeptrain.data import build as builder

    found = builder.inspect(args.path, args.samples)
    print(json.dumps(found.to_json(), indent=1) if args.json else found.text())
    return 0


def parse_parameters(words: list[str]) -> dict[str, Any]:
    """`key=value` words as a dict of YAML values. Raises UserError listing every word that is none."""
    from sleeptrain.config.load import parse_override

    errors: list[str] = []
    parsed = [parse_override(word, errors) for word in words]
    if errors:
        raise UserError(errors)
    return {".".join(one[0]): one[1] for one in parsed if one is not None}


def _with_progress(work: Any, quiet: bool) -> Any:
    """Runs `work(show)` with a progress bar on the terminal's error stream."""
    if quiet or not sys.stderr.isatty():
        return work(None)
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        known: dict[str, Any] = {}

        def show(split: str, done: int, total: int | None) -> None:
            if split not in known:
                known[split] = bars.add_task(split, total=total)
            bars.update(known[split], completed=done, total=total)

        return work(show)
