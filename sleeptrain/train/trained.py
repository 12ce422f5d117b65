"""The trained weights of a job (`optim.trainable`), and what they do not go together with."""

from __future__ import annotations

from functools import lru_cache

from sleeptrain.engine.optimizers import kind
from sleeptrain.errors import UserError
from sleeptrain.model.config import Model
from sleeptrain.model.trained import ALL_TRAINED, TrainedWeights, first_block, select, selection_problem, weights_of
from sleeptrain.parallel.config import pipeline_obstacle, stage_cuts
from sleeptrain.program import Sleep
from sleeptrain.schedule import stage_blocks
from sleeptrain.train.job import Job

GROUPS = {"matrix": "hidden matrices", "plain": "other weights"}
"""The groups of the optimizer in words."""


def trained_weights(job: Job) -> TrainedWeights:
    """The weights of a job that are trained. Raises UserError where its patterns choose none."""
    patterns = job.optim.trainable
    return ALL_TRAINED if patterns is None else _trained(patterns, job.model, job.sleep)


@lru_cache(maxsize=8)
def _trained(patterns: tuple[str, ...], model: Model, sleep: Sleep) -> TrainedWeights:
    if problem := selection_problem(patterns, model, sleep.gated):
        raise UserError(f"optim.trainable: {problem}")
    names = select(patterns, model, sleep.gated)
    return TrainedWeights(names, first_block(names, model, sleep))


def trainable_problem(job: Job) -> str | None:
    """Why the patterns of a job do not fit its model; None if they do."""
    patterns = job.optim.trainable
    return None if patterns is None else selection_problem(patterns, job.model, job.sleep.gated)


def trainable_stages_problem(job: Job) -> str | None:
    """Why a job with frozen weights cannot be a pipeline; None if it can, or another rule applies.

    DeepSpeed (0.19.8) all-reduces the norm of the gradient over the stages once for every group of the optimizer: a stage with
    fewer groups would make the others wait forever.
    """
    if job.optim.trainable is None or job.mesh.pipe == 1:
        return None
    if pipeline_obstacle(job.model, job.mesh) or trainable_problem(job):
        return None
    trained, depth = trained_weights(job), len(job.model.pattern)
    groups: list[list[str]] = []
    for stage in stage_blocks(job.sleep, depth, stage_cuts(job.model, job.sleep, job.mesh.pipe)):
        first, last = stage.start == 0, stage.stop == depth
        held = {"embed": first or (last and job.model.tie), "feedback": first, "norm": last, "head": last}
        found = {
            kind(name, weight)
            for name, weight in weights_of(job.model, job.sleep.gated).items()
            if name in trained
            and held.get(name.split(".")[0], name.startswith("layers.") and stage.start <= int(name.split(".")[1]) < stage.stop)
        }  # fmt: skip
        groups.append([words for group, words in GROUPS.items() if group in found])
    if all(found == groups[0] for found in groups):
        return None
    told = "; ".join(f"stage {s}: {' and '.join(found) or 'nothing'}" for s, found in enumerate(groups))
    return f"every pipeline stage must train weights of the same groups of the optimizer, and these are trained: {told}"
