"""The layout of a run: batch arithmetic, pipeline stages, program and schedule, resolved once from job, data and processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from sleeptrain.data.budget import SourceSize, epochs_of_run, steps_of_budget
from sleeptrain.parallel.config import (
    BatchLayout,
    LayoutError,
    batch_layout,
    data_parallel_size,
    pipeline_obstacle,
    stage_cuts,
)
from sleeptrain.program import Program, Sleep, Window, compile
from sleeptrain.schedule import (
    RECOMPUTE_POLICIES,
    RecomputePolicy,
    Schedule,
    StageBlocks,
    build_schedule,
    stage_blocks,
)
from sleeptrain.train.job import Job
from sleeptrain.train.trained import trained_weights

COMPILE, CUDA_GRAPHS = "train.compile", "train.cuda_graphs"
"""Fields that `auto` may turn on."""


@dataclass(frozen=True)
class Layout:
    """What job, data and number of processes decide together. Trainer, planner and command line all read it here."""

    job: Job
    """Complete: the data has filled in `model.vocab`."""
    windows: tuple[Window, ...]
    """The windows of every row, in order and without gaps."""
    batch: BatchLayout
    stages: tuple[StageBlocks, ...]
    """The blocks of every pipeline stage."""
    sizes: tuple[SourceSize, ...] = ()
    """Rows and real tokens of every source; empty where there is no data yet: rows count as full."""
    automatic: frozenset[str] = frozenset()
    """Dotted paths of what `auto` has turned on: a run goes on without it, and with a warning, where it turns out not to work."""

    @property
    def world(self) -> int:
        """Processes of the run."""
        return self.batch.data * self.job.mesh.pipe * self.job.mesh.tensor

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.windows[-1].stop

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a global batch, padding included."""
        return self.job.train.batch * self.length

    @cached_property
    def steps(self) -> int:
        """Optimizer steps of the run: `train.steps`, or those of `train.tokens` (`steps_of_budget`)."""
        train = self.job.train
        if train.steps:
            return train.steps
        rows = [size.rows for size in self.sizes]
        if not any(rows):
            return -(-(train.tokens or 0) // self.tokens_per_step)
        return steps_of_budget(train.tokens or 0, self.job.data.mix(rows), self.sizes, train.batch)

    @property
    def epochs(self) -> dict[str, float]:
        """How often the run reads each source, by its name; empty where there is no data yet."""
        rows = [size.rows for size in self.sizes]
        if not any(rows):
            return {}
        data = self.job.data
        found = epochs_of_run(self.steps, data.mix(rows), self.sizes, self.job.train.batch)
        return dict(zip(data.names, found, strict=True))

    @property
    def padding(self) -> float | None:
        """Share of padding in the rows that the run reads of its sources; None where there is no data yet."""
        read = list(zip(self.epochs.values(), self.sizes, strict=True)) if self.epochs else []
        rows = sum(epochs * size.rows for epochs, size in read)
        return 1 - sum(epochs * size.tokens for epochs, size in read) / (rows * self.length) if rows else None

    @property
    def tied(self) -> bool:
        """Whether embedding and head share a matrix that is trained: two stages reduce its gradient."""
        return self.job.model.tie and "embed.weight" in trained_weights(self.job)

    @property
    def recompute(self) -> RecomputePolicy:
        """What is kept for backward, and whether it is offloaded."""
        return replace(RECOMPUTE_POLICIES[self.job.train.schedule_policy], offload=self.job.train.offload)

    def program(self, passes: int | None = None) -> Program:
        """The program of a step of `passes` passes; None: the largest number of any step."""
        return self._compile(passes, carried=self.job.data.lane is not None)

    def program_of_rows_alone(self, passes: int | None = None) -> Program:
        """The program of rows that begin with an empty state, as in evaluation, of `passes` passes or the largest number."""
        return self._compile(passes, carried=False)

    def _compile(self, passes: int | None, carried: bool) -> Program:
        passes = self.job.sleep.max_passes if passes is None else passes
        return _compiled(self.job.sleep, self.windows, len(self.job.model.pattern), passes, carried)

    def program_at(self, step: int) -> Program:
        """The program of a step (0-based)."""
        return self.program(self.job.sleep.passes_at(step, self.job.train.seed))

    @cached_property
    def schedule(self) -> Schedule:
        """The schedule of one forward and backward at the largest number of passes, not checked."""
        return self._build(self.program(), self.batch.group)

    def build_schedule(self, program: Program, micro_batches: int) -> Schedule:
        """The schedule of one forward and backward of `micro_batches` micro-batches, not checked. `schedule` is built once."""
        largest = program.key == self.program().key and micro_batches == self.batch.group
        return self.schedule if largest else self._build(program, micro_batches)

    def _build(self, program: Program, micro_batches: int) -> Schedule:
        return build_schedule(program, self.stages, micro_batches, self.recompute, self.tied)


def resolve_batch(job: Job, world: int) -> BatchLayout:
    """The batch arithmetic of a run of `world` processes. Raises LayoutError where mesh or batch do not fit them."""
    data = data_parallel_size(job.mesh, world)
    return batch_layout(job.train.batch, job.train.micro, job.mesh, data)


def resolve_layout(job: Job, windows: Sequence[Window], batch: BatchLayout, sizes: Sequence[SourceSize] = ()) -> Layout:
    """The layout of a complete job whose batch arithmetic is `batch`. Raises LayoutError if it has too few blocks to divide.

    `sizes` of the sources say how many steps a budget of tokens has.
    """
    if reason := pipeline_obstacle(job.model, job.mesh):
        raise LayoutError({"mesh.pipe": job.mesh.pipe}, reason)
    stages = stage_blocks(job.sleep, len(job.model.pattern), stage_cuts(job.model, job.sleep, job.mesh.pipe))
    return Layout(job, tuple(windows), batch, stages, tuple(sizes))


@lru_cache(maxsize=64)
def _compiled(sleep: Sleep, windows: tuple[Window, ...], depth: int, passes: int, carried: bool) -> Program:
    """A program compiled once for all steps with the same number of passes."""
    return compile(sleep, windows, depth, passes, carried=carried)
