"""CPU time of a training step with four passes relative to one with a single pass, on one thread.

A step is forward, backward and optimizer through `train_step`, in one process. Both kinds of step alternate on the same
engine.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from figures import Figure, interleaved, median_ratio, part

from sleeptrain.data.batch import IGNORED, Batch
from sleeptrain.engine.build import EngineSpec, build_engine
from sleeptrain.model.counts import parameters
from sleeptrain.model.init import initialise
from sleeptrain.model.language import LanguageModel
from sleeptrain.parallel.mesh import init_mesh
from sleeptrain.parallel.process import shutdown_distributed
from sleeptrain.program import Window
from sleeptrain.recipe import load_recipe
from sleeptrain.train.build_model import checkpointed_forward
from sleeptrain.train.layout import resolve_batch, resolve_layout
from sleeptrain.train.step import StepContext, train_step

PASSES = 4
RING = 24
RULE110 = [Window(i * RING, (i + 1) * RING, False) for i in range(4)] + [Window(4 * RING, 4 * RING + 4, True)]
"""Four windows that sleep and four answer tokens (arXiv 2605.26099, section 6.1)."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A recipe, run with fewer rows and in float32, and the windows of its samples."""

    name: str
    recipe: str
    layout: Sequence[Window]
    rows: int
    vocab: int
    most: float | None
    """The largest allowed ratio; None: 1.05 times the ratio of token passes."""
    overrides: tuple[str, ...] = ()


def text(windows: int, length: int = 64) -> list[Window]:
    """Windows of text: all are predicted, and all but the last sleep."""
    return [Window(i * length, (i + 1) * length, True) for i in range(windows)]


CASES = (
    Case("Rule 110, width 256", "rule110", RULE110, 16, 4, None),
    Case("Rule 110, width 64", "rule110-small", RULE110, 64, 4, None, (f"sleep.window={RING}",)),
    Case("text, 4 windows", "text-small", text(4), 16, 257, 3.6),
    Case("text, 8 windows", "text-small", text(8), 8, 257, 3.6),
)


def batch(layout: Sequence[Window], rows: int, vocab: int) -> Batch:
    """Random tokens, with targets in the windows that have them. The last id, which is the padding, does not occur."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocab - 1, (rows, layout[-1].stop), generator=generator)
    targets = torch.full_like(tokens, IGNORED)
    for w in layout:
        if w.targets:
            targets[:, w.start : w.stop] = torch.randint(vocab - 1, (rows, w.stop - w.start), generator=generator)
    return Batch(tokens, targets, torch.full_like(tokens, -1), torch.arange(rows), {})


def stepper(case: Case, rows: int) -> tuple[dict[int, Callable[[], float]], dict[str, object], float]:
    """For each number of passes a function that runs one step and returns its CPU seconds; the details of the case; and
    the ratio of token passes."""
    recipe = load_recipe(case.recipe, [f"sleep.passes={PASSES}", "train.precision=fp32", *case.overrides]).value
    model = LanguageModel(dataclasses.replace(recipe.model, vocab=case.vocab), seed=None)
    length = case.layout[-1].stop
    initialise(model, 0, 2 * PASSES * length)
    detail = {
        "recipe": case.recipe, "rows": rows, "tokens_of_a_row": length, "width": recipe.model.width,
        "layers": recipe.model.pattern, "parameters": parameters(model)["total"], "optimizer": recipe.optim.name,
        "recompute": recipe.train.recompute,
    }  # fmt: skip
    engine = build_engine(model, recipe.optim, EngineSpec("fp32", recipe.mesh.zero, micro_rows=rows, accumulation=1))
    data, axes = batch(case.layout, rows, case.vocab), init_mesh(recipe.mesh, 0, 1)
    job = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, batch=rows, micro=rows))
    layout = resolve_layout(job, case.layout, resolve_batch(job, 1))
    context = StepContext(engine, checkpointed_forward(recipe), layout, axes, pad=case.vocab - 1)
    programs = {n: layout.program(n) for n in (1, PASSES)}

    def step(n: int) -> float:
        start = time.process_time()
        train_step(context, [data], programs[n], 1e-6)
        return time.process_time() - start

    ratio = programs[PASSES].token_passes / programs[1].token_passes
    return {n: partial(step, n) for n in programs}, detail, ratio


def figures(quick: bool) -> list[Figure]:
    """The ratio of step times of four passes to one, one figure per case."""
    torch.set_num_threads(1)
    results = []
    for case in CASES[1:3] if quick else CASES:
        steps, detail, token_passes = stepper(case, 2 if quick else case.rows)
        interleaved({str(n): step for n, step in steps.items()}, 1)  # warm-up
        times = interleaved({str(n): step for n, step in steps.items()}, 2 if quick else 11)
        one, many = times["1"], times[str(PASSES)]
        milliseconds = {n: 1e3 * statistics.median(series) for n, series in times.items()}
        most = case.most if case.most is not None else 1.05 * token_passes
        detail = detail | {"token_passes": token_passes, "milliseconds": milliseconds}
        results.append(
            Figure(
                f"step, N = {PASSES} over N = 1: {case.name}", median_ratio(many, one), "x", at_most=most, detail=detail
            )
        )
    shutdown_distributed()
    return results


if __name__ == "__main__":
    part(figures, __doc__, ["torch", "deepspeed"])
