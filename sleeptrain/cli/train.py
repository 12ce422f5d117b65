"""`sleeptrain train`: train a recipe, in one process or under a launcher."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from sleeptrain.cli.help import add_command
from sleeptrain.config import RunFailed, UserError

EXAMPLES = (
    "sleeptrain train rule110-tiny",
    "sleeptrain train rule110-tiny sleep.passes=4 train.steps=20 run_dir=runs/try",
    "sleeptrain train rule110-tiny --explain",
    "sleeptrain train rule110-tiny train.batch=128 run_dir=runs/large --dry-run",
)

ALONE = timedelta(seconds=30)
"""So long a process that cannot read its recipe looks for others to tell."""


def add(subparsers: Any) -> None:
    """Add this command to the program's parser."""
    description = (
        "Train a recipe: a file, or the name of one in configs/. A run folder that already has a checkpoint "
        "is continued. Works in one process, and under torchrun, srun or the deepspeed launcher in several."
    )
    parser = add_command(subparsers, "train", "train a recipe", description, EXAMPLES)
    parser.add_argument("recipe", help="a YAML file, or the name of one in configs/")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes to the recipe, such as sleep.passes=4"
    )
    parser.add_argument("--explain", action="store_true", help="print every value and where it came from, and stop")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, say what it needs and where it would write, and stop"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Do it; 0, or 128 + the signal that stopped it."""
    from sleeptrain.recipe.recipe import load_recipe

    if not args.explain and not args.dry_run:
        return train(args)
    if os.environ.get("RANK", "0") != "0":
        return 0  # under a launcher the first process says it
    resolved = load_recipe(args.recipe, args.overrides)
    if args.dry_run and not args.explain:
        return dry_run(resolved, args)
    explain(resolved.rows())
    return 0


def explain(rows: list[tuple[str, Any, str]]) -> None:
    """Every value with its source."""
    from rich.console import Console
    from rich.table import Table

    table = Table("value", "", "from")
    for path, value, source in rows:
        table.add_row(path, str(value), source)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def dry_run(resolved: Any, args: argparse.Namespace) -> int:
    """Check everything that needs no other process: batch and mesh, data, schedule, run folder. Writes nothing; 0.

    Under a launcher it is for the launched processes, without one for as many as the mesh names.
    """
    from sleeptrain import checkpoint, plan
    from sleeptrain.parallel.process import env_int, local_device
    from sleeptrain.recipe.recipe import check_processes, check_run, run_folder
    from sleeptrain.train.setup import check_device

    world = env_int("WORLD_SIZE", 1) if "WORLD_SIZE" in os.environ else plan.planned_world(resolved.value, None)
    check_processes(resolved, world)
    check_device(resolved.value, local_device())
    with naming_data(resolved):
        read_ahead(resolved.value, world)
    resolved, layout = plan.resolve_data(resolved)
    folder = run_folder(resolved.value, args.recipe)
    check_run(resolved, folder, layout.manifest)
    check_writable(resolved, folder)
    print(plan.text(plan.make_plan(resolved, layout, world)))
    newest = checkpoint.latest(folder / "checkpoints")
    how = "would begin" if newest is None else f"would go on from {newest.name}"
    print(f"\nThis was checked and not run: it {how} in {folder}.")
    return 0


def read_ahead(job: Any, world: int) -> None:
    """Open the data as the first process would. Raises UserError where it cannot be read or a step needs more of it."""
    from sleeptrain.data import Reader
    from sleeptrain.train.setup import split_batch

    data = world // (job.mesh.pipe * job.mesh.tensor)
    split = split_batch(job, data)
    Reader(job.data, micro=split.micro, accumulation=split.group * split.accumulation, world=data, seed=job.train.seed)


def check_writable(resolved: Any, folder: Path) -> None:
    """Raise UserError where a run folder could not be made."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        why = "may not be written to" if there.is_dir() else "is a file"
        raise UserError(
            f"{resolved.at('run_dir')}: {folder} cannot be written ({there} {why}); name another folder with run_dir=..."
        )


def train(args: argparse.Namespace) -> int:
    """Read the recipe, join the other processes, open data and run folder, train.

    What is wrong with the recipe is told by the first process of a machine before any has joined; if that one can read it,
    together with the ranks that cannot. What is wrong later is told once.
    """
    from sleeptrain.recipe.recipe import check_processes, load_recipe, open_run

    resolved: Any = None
    try:
        resolved = load_recipe(args.recipe, args.overrides)
    except UserError:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            raise
    import torch.distributed

    from sleeptrain.parallel.process import explain_lost_process, init_distributed, shutdown_distributed
    from sleeptrain.plan import stage_balance
    from sleeptrain.train.kernels import check_kernels
    from sleeptrain.train.loop import train as loop
    from sleeptrain.train.setup import assert_same_on_all_ranks, check_device, on_every_rank, on_first_rank, set_up

    try:
        process = init_distributed() if resolved else init_distributed(ALONE)
    except torch.distributed.DistError:
        if resolved:
            raise
        return 2  # nobody is there any more: the first process has told it and ended
    try:
        resolved = on_every_rank(process, lambda: resolved or load_recipe(args.recipe, args.overrides))
        assert_same_on_all_ranks(process, {path: value for path, value, _ in resolved.rows()})
        on_first_rank(process, lambda: check_processes(resolved, process.world))
        on_every_rank(process, lambda: check_device(resolved.value, process.device))
        resolved, reader = on_every_rank(process, lambda: open_data(resolved, process))
        job, windows = resolved.value, reader.manifest.windows
        on_every_rank(process, lambda: check_kernels(job.model, job.train, windows, process.device))
        folder = on_first_rank(process, lambda: open_run(resolved, args.recipe, reader.manifest))
        args.failures = folder
        setup = set_up(job, {path: value for path, value, _ in resolved.rows()}, folder, reader, process)
        if setup.axes.pipe.size > 1 and process.rank == 0:
            print(stage_balance(setup.job, windows, setup.split), file=sys.stderr)
        if setup.step and process.rank == 0:
            print(f"{folder}: continuing at step {setup.step} of {setup.steps}", file=sys.stderr)
        with explain_lost_process(process):
            outcome = loop(setup)
    except RunFailed:
        if process.rank != 0:
            return 1  # it is raised on all ranks, and rank 0 says it
        raise
    finally:
        shutdown_distributed()
    if process.rank == 0:
        how = "done" if outcome.signal is None else "stopped and saved; the same command continues it"
        print(f"{folder}: step {outcome.step} of {outcome.steps}, {how}", file=sys.stderr)
    return 0 if outcome.signal is None else 128 + outcome.signal


def open_data(resolved: Any, process: Any) -> tuple[Any, Any]:
    """The recipe with what the data decides, and this process's reader. Raises UserError with where the data was named."""
    from sleeptrain.recipe.recipe import complete
    from sleeptrain.train.setup import open_reader

    with naming_data(resolved):
        reader = open_reader(resolved.value, process)
    return complete(resolved, reader.manifest), reader


@contextmanager
def naming_data(resolved: Any) -> Iterator[None]:
    """A UserError about the data also says where the data was named."""
    try:
        yield
    except UserError as error:
        raise UserError([f"{resolved.at('data.sources')}: {line}" for line in error.errors]) from None
