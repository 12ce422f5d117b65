"""`sleeptrain train`: train a recipe, in one process or under a launcher."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from sleeptrain.cli.help import add_verb
from sleeptrain.config import RunFailed, UserError

EXAMPLES = (
    "sleeptrain train rule110-tiny",
    "sleeptrain train rule110-tiny sleep.passes=4 train.steps=20 run_dir=runs/try",
    "sleeptrain train rule110-tiny --explain",
)


def add(subparsers: Any) -> None:
    """Add this verb to the program's parser."""
    description = (
        "Train a recipe: a file, or the name of one in configs/. A run folder that already has a checkpoint "
        "is continued. Works in one process, and under torchrun, srun or the deepspeed launcher in several."
    )
    parser = add_verb(subparsers, "train", "train a recipe", description, EXAMPLES)
    parser.add_argument("recipe", help="a YAML file, or the name of one in configs/")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes to the recipe, such as sleep.passes=4"
    )
    parser.add_argument("--explain", action="store_true", help="print every value and where it came from, and stop")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Do it; 0, or 128 + the signal that stopped it."""
    from sleeptrain.recipe import load_recipe

    try:
        resolved = load_recipe(args.recipe, args.overrides)
    except UserError:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            return 2  # the first process of this machine reads the same and says it
        raise
    if args.explain:
        explain(resolved.rows())
        return 0
    return train(resolved, args)


def explain(rows: list[tuple[str, Any, str]]) -> None:
    """Every value with its source."""
    from rich.console import Console
    from rich.table import Table

    table = Table("value", "", "from")
    for path, value, source in rows:
        table.add_row(path, str(value), source)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def train(resolved: Any, args: argparse.Namespace) -> int:
    """Join the other processes, open data and run folder, train."""
    from sleeptrain.engine.process import init_distributed, leave
    from sleeptrain.recipe import check_processes, open_run
    from sleeptrain.train.loop import train as loop
    from sleeptrain.train.setup import agree, on_every_rank, on_first_rank, set_up

    place = init_distributed()
    try:
        agree(place, {path: value for path, value, _ in resolved.rows()})
        on_first_rank(place, lambda: check_processes(resolved, place.world))
        resolved, reader = on_every_rank(place, lambda: open_data(resolved, place))
        folder = on_first_rank(place, lambda: open_run(resolved, args.recipe, reader.manifest))
        args.failures = folder
        setup = set_up(resolved.value, {path: value for path, value, _ in resolved.rows()}, folder, reader, place)
        if setup.step and place.rank == 0:
            print(f"{folder}: continuing at step {setup.step} of {setup.steps}", file=sys.stderr)
        outcome = loop(setup)
    except RunFailed:
        if place.rank != 0:
            return 1  # it is raised on all ranks, and rank 0 says it
        raise
    finally:
        leave()
    if place.rank == 0:
        how = "done" if outcome.signal is None else "stopped and saved; the same command continues it"
        print(f"{folder}: step {outcome.step} of {outcome.steps}, {how}", file=sys.stderr)
    return 0 if outcome.signal is None else 128 + outcome.signal


def open_data(resolved: Any, place: Any) -> tuple[Any, Any]:
    """The recipe with what the data decides, and this process's reader. Raises UserError with where the data was named."""
    from sleeptrain.recipe import complete
    from sleeptrain.train.setup import open_reader

    try:
        reader = open_reader(resolved.value, place)
    except UserError as error:
        raise UserError([f"{resolved.at('data.sources')}: {line}" for line in error.errors]) from None
    return complete(resolved, reader.manifest), reader
