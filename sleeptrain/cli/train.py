"""`sleeptrain train`: train a recipe, in one process or under a launcher."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleeptrain.cli.help import add_command, whole_numbers
from sleeptrain.errors import RunFailed, UserError
from sleeptrain.evaluate.table import print_table

if TYPE_CHECKING:
    from sleeptrain.data.reader import Reader
    from sleeptrain.parallel.config import BatchLayout
    from sleeptrain.parallel.process import Process
    from sleeptrain.train.loop import Outcome

EXAMPLES = (
    "sleeptrain train rule110-tiny",
    "sleeptrain train rule110-tiny sleep.passes=4 train.steps=20 run_dir=runs/try",
    "sleeptrain train rule110-tiny --seeds 0,1,2 train.steps=20 run_dir=runs/seeds",
    "sleeptrain train rule110-tiny --explain",
    "sleeptrain train rule110-tiny train.batch=128 run_dir=runs/large --dry-run",
)

RENDEZVOUS_WITHOUT_RECIPE = timedelta(seconds=30)
"""How long a process that cannot read its recipe waits for the others, to report its error."""


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
    parser.add_argument(
        "--seeds",
        type=whole_numbers(0),
        metavar="S,S,...",
        help="train once with each of these seeds, one after the other, in the folders seed-S of the run folder",
    )
    parser.add_argument("--explain", action="store_true", help="print every value and where it came from, and stop")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, print what the run needs and where it would write, and stop",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns 0, or 128 + the signal that stopped the run."""
    if not args.explain and not args.dry_run:
        return train(args)
    if os.environ.get("RANK", "0") != "0":
        return 0  # under a launcher the first process prints it
    resolved = load_run(args, args.seeds[0] if args.seeds else None)
    if args.dry_run and not args.explain:
        return dry_run(resolved, args)
    explain(resolved.rows())
    return 0


def load_run(args: argparse.Namespace, seed: int | None) -> Any:
    """The recipe with the command line's changes; with a seed of `--seeds`, that seed and its folder in the run folder."""
    from sleeptrain.recipe import load_recipe
    from sleeptrain.recipe.continuation import check_seeds
    from sleeptrain.run.folder import seed_folder

    resolved = load_recipe(args.recipe, args.overrides)
    if seed is None:
        return resolved
    base = resolved.value.folder(args.recipe)
    check_seeds(resolved, base, args.seeds)
    folder = json.dumps(str(seed_folder(base, seed)), ensure_ascii=False)
    return load_recipe(args.recipe, [*args.overrides, f"train.seed={seed}", f"run_dir={folder}"])


def explain(rows: list[tuple[str, Any, str]]) -> None:
    """Print every value with its source."""
    print_table(("value", "", "from"), ((path, str(value), source) for path, value, source in rows))


def dry_run(resolved: Any, args: argparse.Namespace) -> int:
    """Check everything that needs no other process: batch and mesh, data, schedule, run folder. Writes nothing; returns 0.

    Under a launcher the check is for the launched processes, without one for as many as the mesh names.
    """
    from sleeptrain import checkpoint, plan
    from sleeptrain.parallel.process import env_int, local_device
    from sleeptrain.recipe import check_batch, check_run
    from sleeptrain.recipe.load_trained import initial_weights
    from sleeptrain.train.layout import resolve_layout
    from sleeptrain.train.setup import check_device, open_reader

    world = env_int("WORLD_SIZE", 1) if "WORLD_SIZE" in os.environ else plan.planned_world(resolved.value, None)
    batch = check_batch(resolved, world)
    check_device(resolved.value, local_device())
    with naming_data(resolved):
        open_reader(resolved.value, batch, 0)
    resolved, data_layout = plan.resolve_data(resolved)
    folder = resolved.value.folder(args.recipe)
    check_run(resolved, folder, data_layout.manifest)
    initial_weights(resolved)
    check_writable(resolved, folder)
    layout = resolve_layout(resolved.value, data_layout.windows, batch)
    print(plan.text(plan.make_plan(layout, data_layout)))
    newest = checkpoint.latest(folder / "checkpoints")
    action = "begin" if newest is None else f"continue from {newest.name}"
    print(f"\nDry run: everything was checked and nothing was written. The run would {action} in {folder}.")
    if args.seeds and len(args.seeds) > 1:
        others = ", ".join(map(str, args.seeds[1:]))
        print(f"After seed {args.seeds[0]} the command would train seed {others}, in folders beside this one.")
    return 0


def check_writable(resolved: Any, folder: Path) -> None:
    """Raise UserError where the run folder could not be made."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        why = "may not be written to" if existing.is_dir() else "is a file"
        raise UserError(
            f"{resolved.at('run_dir')}: {folder} cannot be written ({existing} {why}); name another folder with run_dir=..."
        )


def train(args: argparse.Namespace) -> int:
    """Read the recipe, join the other processes, and train it, with several seeds one after the other.

    Errors in the recipe are printed by the first process of a machine before any process joins; if that one can read the
    recipe and others cannot, rank 0 prints them with their ranks. Later errors are printed once, by rank 0.
    """
    seeds: list[int | None] = args.seeds or [None]
    recipes: list[Any] = []
    try:
        recipes = [load_run(args, seed) for seed in seeds]
    except UserError:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            raise
    import torch.distributed

    from sleeptrain.parallel.process import init_distributed, shutdown_distributed

    try:
        process = init_distributed() if recipes else init_distributed(RENDEZVOUS_WITHOUT_RECIPE)
    except torch.distributed.DistError:
        if recipes:
            raise
        return 2  # the first process printed the error and has ended
    try:
        for seed, resolved in zip(seeds, recipes or [None] * len(seeds), strict=True):
            outcome = run_training(args, seed, resolved, process)
            if process.rank == 0:
                how = "done" if outcome.signal is None else "stopped and saved; the same command continues it"
                print(f"{args.failures}: step {outcome.step} of {outcome.steps}, {how}", file=sys.stderr)
            if outcome.signal is not None:
                return 128 + outcome.signal
        return 0
    except RunFailed:
        if process.rank != 0:
            return 1  # every rank raises; rank 0 prints
        raise
    finally:
        shutdown_distributed()


def run_training(args: argparse.Namespace, seed: int | None, resolved: Any, process: Process) -> Outcome:
    """One run: resolve data and layout, open the run folder, train. `resolved` is None where this rank could not read the recipe."""
    from sleeptrain.parallel.collectives import on_every_rank, on_first_rank
    from sleeptrain.parallel.process import explain_lost_process
    from sleeptrain.plan import stage_balance
    from sleeptrain.recipe import check_batch, open_run
    from sleeptrain.recipe.continuation import announced_changes, rate_change
    from sleeptrain.recipe.load_trained import initial_weights
    from sleeptrain.train.kernels import check_kernels
    from sleeptrain.train.layout import resolve_layout
    from sleeptrain.train.loop import train as train_loop
    from sleeptrain.train.setup import assert_same_config, check_device, set_up
    from sleeptrain.train.start import kernels_line, start_lines

    resolved = on_every_rank(process, lambda: resolved or load_run(args, seed))
    assert_same_config(process, {path: value for path, value, _ in resolved.rows()})
    batch = on_first_rank(process, lambda: check_batch(resolved, process.world))
    on_every_rank(process, lambda: check_device(resolved.value, process.device))
    resolved, reader = on_every_rank(process, lambda: open_data(resolved, batch, process))
    layout = resolve_layout(resolved.value, reader.manifest.windows, batch)
    on_every_rank(process, lambda: check_kernels(layout.job.model, layout.job.train, layout.windows, process.device))
    before, changes = on_first_rank(process, lambda: announced_changes(resolved, resolved.value.folder(args.recipe)))
    init_from = on_first_rank(process, lambda: initial_weights(resolved))
    folder = on_first_rank(process, lambda: open_run(resolved, args.recipe, reader.manifest))
    args.failures = folder

    def say(*lines: str) -> None:
        if process.rank == 0:
            print(*lines, sep="\n  ", file=sys.stderr, flush=True)

    say(f"{folder}: {args.recipe}", *start_lines(layout, reader.manifest, process))
    flat_config = {path: value for path, value, _ in resolved.rows()}
    setup = set_up(layout, reader, process, folder, flat_config, init_from)
    say(f"  {kernels_line(setup.engine.module)}")
    if layout.job.mesh.pipe > 1:
        say(str(stage_balance(layout)))
    if setup.step:
        jump = rate_change(before, layout, setup.step) if before else None
        say(f"{folder}: continuing at step {setup.step} of {layout.steps}", *changes, *([jump] if jump else []))
    elif init_from:
        say(f"{folder}: starting from the weights of {init_from}")
    try:
        with explain_lost_process(process):
            return train_loop(setup)
    finally:
        reader.close()  # the next seed has its own


def open_data(resolved: Any, batch: BatchLayout, process: Process) -> tuple[Any, Reader]:
    """The recipe completed by the data, and this process's reader. Errors name the source of the data's path."""
    from sleeptrain.parallel.mesh import init_mesh
    from sleeptrain.recipe import complete
    from sleeptrain.train.setup import open_reader

    with naming_data(resolved):
        rank = init_mesh(resolved.value.mesh, process.rank, process.world).data.rank
        reader = open_reader(resolved.value, batch, rank)
    return complete(resolved, reader.manifest), reader


@contextmanager
def naming_data(resolved: Any) -> Iterator[None]:
    """Adds the data's path and its source in front of a UserError, and the command that builds data that is missing."""
    from sleeptrain.recipe.task_files import with_build_command

    try:
        yield
    except UserError as error:
        raise UserError([f"{resolved.at('data.sources')}: {line}" for line in with_build_command(error)]) from None
