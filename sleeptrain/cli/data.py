"""`sleeptrain data`: builds the shards of a task, and shows the content of a folder of shards."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from sleeptrain.cli.help import add_command
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
    """Add this command to the program's parser."""
    parser = add_command(
        subparsers, "data", "build or inspect training data",
        "Build training data as MDS shards, or show the content of a folder of shards.", EXAMPLES["data"],
    )  # fmt: skip
    actions = parser.add_subparsers(title="actions", dest="action", required=True, metavar="ACTION")

    build = add_command(
        actions, "build", "write the shards of a task",
        "Write the shards of a task and their manifest. Equal requests give equal bytes; a folder that was built from the\n"
        "same request is not written again.", EXAMPLES["build"],
    )  # fmt: skip
    build.add_argument("task", help="path of a task file, name of a task file in configs/task, or name of a task")
    build.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="parameters of the task; train, test (number of samples); seed",
    )
    build.add_argument("--out", required=True, metavar="DIR", help="destination folder")
    build.add_argument("--json", action="store_true", help="print the manifest as JSON")
    build.set_defaults(run=run_build)

    inspect = add_command(
        actions, "inspect", "show the content of a folder of shards",
        "Show the task, its parameters and windows, the number of samples and tokens, the baselines and the first samples\n"
        "of a folder of shards.", EXAMPLES["inspect"],
    )  # fmt: skip
    inspect.add_argument("path", metavar="DIR", help="folder of shards")
    inspect.add_argument(
        "--samples", type=int, default=2, metavar="N", help="number of samples to show of each split (default: 2)"
    )
    inspect.add_argument("--json", action="store_true", help="print the manifest and the samples as JSON")
    inspect.set_defaults(run=run_inspect)


def run_build(args: argparse.Namespace) -> int:
    """Builds the shards of a task and prints a summary or the manifest; returns 0."""
    parameters = parse_parameters(args.overrides)
    from sleep_data.build import build_task
    from sleeptrain.recipe.task_files import task_file

    content = task_file(args.task)
    try:
        manifest = _with_progress(
            lambda progress: build_task(content, args.out, parameters, progress=progress), quiet=args.json
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    if args.json:
        print(json.dumps(manifest, indent=1))
        return 0
    counts = ", ".join(
        f"{split} {entry['samples']:,} samples" for split, entry in sorted(manifest["splits"].items(), reverse=True)
    )
    print(f"{args.out}: {manifest['task']}, {counts}")
    return 0


def run_inspect(args: argparse.Namespace) -> int:
    """Prints the content of a folder of shards; returns 0."""
    if args.samples < 0:
        raise UserError(f"--samples {args.samples}: must not be negative")
    from sleeptrain.data.inspect import inspect

    inspection = inspect(args.path, args.samples)
    print(json.dumps(inspection.to_json(), indent=1) if args.json else inspection.text())
    return 0


def parse_parameters(words: list[str]) -> dict[str, Any]:
    """`key=value` words as a dict of YAML values. Raises UserError that lists every word of another form."""
    from sleeptrain.config.overrides import parse_override
    from sleeptrain.config.tree import without_nodes

    errors: list[str] = []
    parsed = [parse_override(word, 0, errors) for word in words]
    if errors:
        raise UserError(errors)
    return {pair[0]: without_nodes(pair[1]) for pair in parsed if pair is not None}


def _with_progress(work: Callable[[Any], dict[str, Any]], quiet: bool) -> dict[str, Any]:
    """Runs `work(progress)` with a progress bar on stderr, and `work(None)` if `quiet` or stderr is no terminal."""
    if quiet or not sys.stderr.isatty():
        return work(None)
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        bar_of: dict[str, Any] = {}

        def show(split: str, written: int, total: int | None) -> None:
            if split not in bar_of:
                bar_of[split] = bars.add_task(split, total=total)
            bars.update(bar_of[split], completed=written, total=total)

        return work(show)
