"""One training run: what the command `train` does once its processes have joined."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleeptrain.errors import TryAgain, UserError

if TYPE_CHECKING:
    from sleeptrain.data.evaluation import Evaluation
    from sleeptrain.data.reader import Reader
    from sleeptrain.parallel.config import BatchLayout
    from sleeptrain.parallel.process import Process
    from sleeptrain.train.layout import Layout
    from sleeptrain.train.loop import Outcome


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


def run_training(args: argparse.Namespace, seed: int | None, resolved: Any, process: Process) -> Outcome:
    """One run: resolve data and layout, hold the run folder, train. `resolved` is None where this rank could not read the recipe."""
    from sleeptrain.parallel.collectives import on_every_rank, on_first_rank
    from sleeptrain.parallel.process import explain_lost_process
    from sleeptrain.plan import DataLayout, process_memory, resolve_auto, resolve_recompute
    from sleeptrain.recipe import check_batch
    from sleeptrain.recipe.continuation import claimed
    from sleeptrain.recipe.load_trained import initial_weights
    from sleeptrain.train.kernels import check_kernels
    from sleeptrain.train.layout import resolve_layout
    from sleeptrain.train.setup import assert_same_config, check_device
    from sleeptrain.train.wandb_run import check_wandb

    resolved = on_every_rank(process, lambda: resolved or load_run(args, seed))
    assert_same_config(process, {path: value for path, value, _ in resolved.rows()})
    batch = on_first_rank(process, lambda: check_batch(resolved, process.world))
    on_every_rank(process, lambda: check_device(resolved.value, process.device))
    resolved, reader, held_out = on_every_rank(process, lambda: open_data(resolved, batch, process))
    data_layout = DataLayout.of(reader.manifest, reader.sizes)
    memory = process_memory(process.device)
    resolved, why = on_first_rank(process, lambda: resolve_recompute(resolved, batch, data_layout, memory))
    layout = resolve_layout(resolved.value, reader.manifest.windows, batch, reader.sizes)
    layout, left_off = on_first_rank(process, lambda: resolve_auto(layout, data_layout, memory))
    chosen = [*([f"memory  recompute {why}"] if why else []), *(f"auto    {line}" for line in left_off)]
    on_every_rank(process, lambda: check_kernels(layout.job.model, layout.job.train, layout.windows, process.device))
    init_from = on_first_rank(process, lambda: initial_weights(resolved, args.recipe))
    on_first_rank(process, lambda: check_wandb(layout.job.log))
    with ExitStack() as held:
        held.callback(reader.close)  # the next seed has its own
        on_first_rank(process, lambda: held.enter_context(claimed(resolved, args.recipe, reader.manifest)))
        with explain_lost_process(process):
            return _train(args, resolved, layout, (reader, held_out), process, (init_from, chosen))


def _train(
    args: argparse.Namespace,
    resolved: Any,
    layout: Layout,
    data: tuple[Reader, Evaluation | None],
    process: Process,
    start: tuple[Path | None, list[str]],
) -> Outcome:
    """Train in a run folder that this run holds, and write down how it ended.

    `start`: the checkpoint whose weights the run starts from, and lines about what `auto` has chosen.
    """
    from sleeptrain.evaluate.held_out import evaluate_held_out
    from sleeptrain.parallel.collectives import on_first_rank
    from sleeptrain.plan import stage_balance
    from sleeptrain.recipe import open_run
    from sleeptrain.recipe.continuation import announced_changes, rate_change
    from sleeptrain.train.loop import train
    from sleeptrain.train.phases import StartClock
    from sleeptrain.train.setup import set_up
    from sleeptrain.train.start import start_lines

    (reader, held_out), (init_from, chosen) = data, start
    before, changes = on_first_rank(process, lambda: announced_changes(resolved, resolved.value.folder(args.recipe)))
    folder = on_first_rank(process, lambda: open_run(resolved, args.recipe, reader.manifest))
    args.failures = folder

    def say(*lines: str) -> None:
        if process.rank == 0:
            print(*lines, sep="\n  ", file=sys.stderr, flush=True)

    say(f"{folder}: {args.recipe}", *start_lines(layout, reader.manifest, process), *chosen)
    flat_config = {path: value for path, value, _ in resolved.rows()}
    with _outcome(folder, process) as outcome:
        clock = StartClock(lambda line: say(f"  {line}"))
        setup = set_up(layout, reader, process, folder, flat_config, init_from, clock)
        if layout.job.mesh.pipe > 1:
            say(str(stage_balance(layout)))
        if setup.step:
            jump = rate_change(before, layout, setup.step) if before else None
            say(f"{folder}: continuing at step {setup.step} of {layout.steps}", *changes, *([jump] if jump else []))
        elif init_from:
            say(f"{folder}: starting from the weights of {init_from}")
        evaluate = None if held_out is None else partial(evaluate_held_out, setup.context, held_out)
        outcome.append(train(setup, evaluate=evaluate))
        setup.engine.close()  # the next seed has its own
    return outcome[0]


@contextmanager
def _outcome(folder: Path, process: Process) -> Iterator[list[Outcome]]:
    """Writes into the run folder that the run is running, and at the end how it ended. The block appends its outcome."""
    from sleeptrain.run.outcome import State, write_outcome

    found: list[Outcome] = []
    state: State = "failed"
    if process.rank == 0:
        write_outcome(folder, "running")
    try:
        yield found
        state = "stopped" if found[0].stopped else "done"
    except TryAgain:
        state = "stopped"
        raise
    finally:
        if process.rank == 0:
            by = ("file" if found[0].by_file else "signal") if found and found[0].stopped else None
            write_outcome(folder, state, found[0].step if found else None, by)


def open_data(resolved: Any, batch: BatchLayout, process: Process) -> tuple[Any, Reader, Evaluation | None]:
    """The recipe completed by the data, and this process's data to train on and, with `eval.every`, to evaluate on.

    Errors name the source of the data's path.
    """
    from sleeptrain.evaluate.held_out import open_held_out
    from sleeptrain.parallel.mesh import init_mesh
    from sleeptrain.recipe import complete
    from sleeptrain.train.setup import open_reader

    with naming_data(resolved):
        rank = init_mesh(resolved.value.mesh, process.rank, process.world).data.rank
        reader, held_out = open_reader(resolved.value, batch, rank), open_held_out(resolved.value, batch, rank)
    return complete(resolved, reader.manifest), reader, held_out


@contextmanager
def naming_data(resolved: Any) -> Iterator[None]:
    """Adds the data's path and its source in front of a UserError, and the command that builds data that is missing."""
    from sleeptrain.recipe.task_files import with_build_command

    try:
        yield
    except UserError as error:
        raise UserError([f"{resolved.at('data.sources')}: {line}" for line in with_build_command(error)]) from None
