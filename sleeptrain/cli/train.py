"""`sleeptrain train`: train a recipe, in one process or under a launcher."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from sleep_launch.parent import signal_at_parents_death
from sleeptrain.cli.help import add_command, whole_numbers
from sleeptrain.cli.training import load_run, naming_data, run_training
from sleeptrain.errors import CONTINUE, ProcessLost, RunFailed, TryAgain, UserError
from sleeptrain.evaluate.table import print_table

EXAMPLES = (
    "sleeptrain train rule110-tiny",
    "sleeptrain train rule110-tiny sleep.passes=4 train.steps=20 run_dir=runs/try",
    "sleeptrain train rule110-tiny --seeds 0,1,2 train.steps=20 run_dir=runs/seeds",
    "sleeptrain train rule110-tiny --explain",
    "sleeptrain train rule110-tiny train.batch=128 run_dir=runs/large --dry-run",
)

TORCHRUN = "TORCHELASTIC_RUN_ID"
"""A variable that torchrun sets for its ranks."""
RENDEZVOUS_WITHOUT_RECIPE = timedelta(seconds=30)
"""How long a process that cannot read its recipe waits for the others, to report its error."""


def add(subparsers: Any) -> None:
    """Add this command to the program's parser."""
    description = (
        "Train a recipe: a file, or the name of one in configs/. A run folder that already has a checkpoint "
        "is continued. Works in one process, and under torchrun, srun or the deepspeed launcher in several. --explain prints all keys. "
        "Ctrl-C and SIGTERM stop it after the present step and save; it then ends with status 75, and the same command continues it."
    )
    parser = add_command(subparsers, "train", "train a recipe", description, EXAMPLES)
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of one in configs/")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="changes to the recipe, such as sleep.passes=4"
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
    """Run the command; returns 0, or 75 if the run was stopped by request and can be continued."""
    from sleeptrain.parallel.ranks import rank_and_world

    rank_and_world()  # under srun it sets the variables that all launchers set
    if not args.explain and not args.dry_run:
        return train(args)
    if os.environ.get("RANK", "0") != "0":
        return 0  # under a launcher the first process prints it
    resolved = load_run(args, args.seeds[0] if args.seeds else None)
    if args.dry_run and not args.explain:
        return dry_run(resolved, args)
    explain(resolved.rows())
    return 0


def explain(rows: list[tuple[str, Any, str]]) -> None:
    """Print every value with its source."""
    print_table(("value", "", "from"), ((path, str(value), source) for path, value, source in rows))


def dry_run(resolved: Any, args: argparse.Namespace) -> int:
    """Check everything that needs no other process: batch and mesh, data, schedule, run folder. Writes nothing; returns 0.

    Under a launcher the check is for the launched processes, without one for as many as the mesh names.
    """
    from sleeptrain import checkpoint, plan
    from sleeptrain.cli.plan import announce
    from sleeptrain.evaluate.held_out import open_held_out
    from sleeptrain.parallel.process import local_device
    from sleeptrain.parallel.ranks import env_int
    from sleeptrain.recipe import check_batch, check_run
    from sleeptrain.recipe.continuation import continuation_lines
    from sleeptrain.recipe.load_trained import initial_weights
    from sleeptrain.train.layout import resolve_layout
    from sleeptrain.train.setup import check_device, open_reader
    from sleeptrain.train.wandb_run import check_wandb

    world = env_int("WORLD_SIZE", 1) if "WORLD_SIZE" in os.environ else plan.planned_world(resolved.value, None)
    batch = check_batch(resolved, world)
    check_device(resolved.value, local_device())
    with naming_data(resolved):
        open_reader(resolved.value, batch, 0)
        open_held_out(resolved.value, batch, 0)
    resolved, data_layout = plan.resolve_data(resolved)
    folder = resolved.value.folder(args.recipe)
    check_run(resolved, folder, data_layout.manifest)
    initial_weights(resolved, args.recipe)
    check_writable(resolved, folder)
    announce(resolve_layout(resolved.value, data_layout.windows, batch))
    memory = plan.process_memory(local_device())
    resolved, why = plan.resolve_recompute(resolved, batch, data_layout, memory)
    layout = resolve_layout(resolved.value, data_layout.windows, batch, data_layout.sizes)
    layout, left_off = plan.resolve_auto(layout, data_layout, memory)
    print(plan.text(plan.make_plan(layout, data_layout), memory, [*([f"recompute {why}"] if why else []), *left_off]))
    check_wandb(resolved.value.log)
    newest = checkpoint.latest(folder / "checkpoints")
    action = "begin" if newest is None else f"continue from {newest.name}"
    for line in ("", *continuation_lines(resolved, folder, layout)):
        print(line)
    print(f"Dry run: everything was checked and nothing was written. The run would {action} in {folder}.")
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
    if TORCHRUN in os.environ:  # killed, or ended by SIGUSR1, it leaves its ranks behind, which would train on
        signal_at_parents_death(signal.SIGTERM, os.getppid())
    seeds: list[int | None] = args.seeds or [None]
    recipes: list[Any] = []
    try:
        recipes = [load_run(args, seed) for seed in seeds]
    except UserError:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            raise
    import torch.distributed

    from sleeptrain.checkpoint import best
    from sleeptrain.parallel.process import init_distributed, shutdown_distributed
    from sleeptrain.run.folder import CHECKPOINTS

    try:
        timeout = timedelta(seconds=recipes[0].value.mesh.timeout) if recipes else RENDEZVOUS_WITHOUT_RECIPE
        process = init_distributed(timeout)
    except torch.distributed.DistError:
        if recipes:
            raise
        return 2  # the first process printed the error and has ended
    try:
        for seed, resolved in zip(seeds, recipes or [None] * len(seeds), strict=True):
            outcome = run_training(args, seed, resolved, process)
            if len(seeds) > 1:
                gc.collect()  # model and optimizer are in cycles, and the next seed needs their memory
            if process.rank == 0:
                how = "stopped and saved; the same command continues it" if outcome.stopped else "done"
                print(f"{args.failures}: step {outcome.step} of {outcome.steps}, {how}", file=sys.stderr)
                if (evaluated := best(args.failures / CHECKPOINTS)) is not None:
                    path, loss = evaluated
                    print(f"{args.failures}: the best evaluated checkpoint is {path}, loss {loss:.4f}", file=sys.stderr)
            if outcome.stopped:
                return CONTINUE
        return 0
    except (RunFailed, TryAgain) as error:
        if process.rank != 0 and not isinstance(error, ProcessLost):  # every rank raises; rank 0 prints
            return CONTINUE if isinstance(error, TryAgain) else 1
        raise
    finally:
        shutdown_distributed()
