"""A quick estimate of a layout's memory and step time, for searches over many layouts.

Work, messages and saved activations grow by equal amounts with every micro-batch of a group, and in proportion to its rows. So
schedules of one and of two micro-batches of one row give those of any group. Idle time and waiting for messages have closed forms.
Everything else is that of the exact plan.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from sleeptrain.plan.activations import ActivationMemory
from sleeptrain.plan.block_kinds import block_kinds
from sleeptrain.plan.costs import costs_of, layer_activations
from sleeptrain.plan.data_layout import DataLayout
from sleeptrain.plan.hardware import Hardware
from sleeptrain.plan.memory import gradients_of_backward, memory_of, temporaries_of_stage
from sleeptrain.plan.ownership import StageParameters, parameter_ownership
from sleeptrain.plan.segment_memory import SegmentMemory
from sleeptrain.plan.step_time import StepTime, axis_times
from sleeptrain.plan.traffic import data_axis, tensor_axis, tensor_reductions
from sleeptrain.program import Pass
from sleeptrain.schedule import Costs, StageEstimate, sample_schedule
from sleeptrain.schedule.estimate import estimate_stage, sent_by_stage
from sleeptrain.schedule.peak import Moment
from sleeptrain.train.layout import Layout
from sleeptrain.train.trained import trained_weights


@dataclass(frozen=True)
class QuickEstimate:
    """Of one layout."""

    memory: float
    """Bytes of the process that needs most."""
    time: StepTime


@dataclass(frozen=True)
class _StageSample:
    """One stage of those that are alike."""

    one: StageEstimate
    """Of one micro-batch of one row."""
    two: StageEstimate
    """Of two."""
    pipe: float
    """Bytes of one micro-batch to other stages."""
    tensor: float
    """Bytes of one micro-batch over the tensor axis."""
    reductions: int
    """All-reduces of one micro-batch over the tensor axis."""
    held: StageParameters

    @property
    def flops(self) -> float:
        """Of one row."""
        return self.one.forward + self.one.recompute + self.one.backward


@dataclass(frozen=True)
class _Sample:
    """The stages of a layout."""

    stages: tuple[_StageSample, ...]
    costs: Costs
    activations: ActivationMemory
    """Of one row."""
    passes: int
    """Work of a stage on one micro-batch is divided into so many turns."""


class QuickPlanner:
    """Estimates layouts of one recipe. Layouts with the same stages, tensor axis and recompute policy share their samples."""

    def __init__(self, data_layout: DataLayout, hardware: Hardware) -> None:
        self.data_layout, self.hardware = data_layout, hardware
        self._samples: dict[tuple[int, int, str], _Sample] = {}

    def estimate(self, layout: Layout) -> QuickEstimate:
        """Memory and step time of a layout."""
        mesh = layout.job.mesh
        key = (mesh.pipe, mesh.tensor, layout.job.train.recompute_policy)
        if key not in self._samples:
            self._samples[key] = self._sample(layout)
        sample = self._samples[key]
        return QuickEstimate(_memory(layout, sample), _time(layout, sample, self.hardware))

    def _sample(self, layout: Layout) -> _Sample:
        row = dataclasses.replace(layout, batch=dataclasses.replace(layout.batch, micro=1))
        activations, program = layer_activations(row, self.data_layout.mask), layout.program()
        costs, only = costs_of(row, activations), _unlike(layout)
        one, two = (sample_schedule(program, layout.stages, n, layout.recompute, only) for n in (1, 2))
        held = parameter_ownership(layout).stages
        stages = [
            _StageSample(
                estimate_stage(one, s, costs), estimate_stage(two, s, costs), sum(sent_by_stage(one, s, costs).values()),
                tensor_axis(layout, one, s, costs), tensor_reductions(layout, one, s)[0], held[s],
            )
            for s in only
        ]  # fmt: skip
        turns = {(op.window, op.index) for op in program.ops if isinstance(op, Pass)}
        return _Sample(tuple(stages), costs, activations, len(turns))


def _unlike(layout: Layout) -> list[int]:
    """One stage of every kind: with the same blocks, at the same end of the stack and of the looped range."""
    blocks_of, kinds = block_kinds(layout.job.model, trained_weights(layout.job)), dict[object, int]()
    for s, blocks in enumerate(layout.stages):
        first, stop = blocks.loop
        ends = [at in range(blocks.start, blocks.stop) for at in (0, first, stop - 1, len(blocks_of) - 1)]
        parts = [stop - start for start, stop in (blocks.part("prelude"), blocks.part("loop"), blocks.part("coda"))]
        counts = frozenset(Counter(blocks_of[blocks.start : blocks.stop]).items())
        kinds.setdefault((*ends, *parts, counts), s)
    return list(kinds.values())


def _memory(layout: Layout, sample: _Sample) -> float:
    """Bytes of the process that needs most."""
    micro, group = layout.batch.micro, layout.batch.group
    activations = _of_rows(sample.activations, micro)
    return max(
        memory_of(
            layout, s.held, _at_the_peak(_of_group(s.one, s.two, group, micro), s, layout, activations, sample.passes),
            sample.costs.sizes,
        ).total
        for s in sample.stages
    )  # fmt: skip


def _at_the_peak(
    stage: StageEstimate, sample: _StageSample, layout: Layout, activations: ActivationMemory, passes: int
) -> StageEstimate:
    """`stage` with the moment of its peak: before the first backward of a pass, or after it, which has allocated the gradients of weights
    and released the graph of the pass. In between both grow block by block. Where graphs are recomputed, that of the next pass follows."""
    kept = layout.batch.micro * sample.one.peak["body"] / passes if layout.recompute.body == "all" else 0.0
    later = max(0.0, gradients_of_backward(layout.job, sample.held) - kept)
    work = temporaries_of_stage(layout.job, sample.held, activations)
    return dataclasses.replace(stage, moment=Moment(grads=later, work=work))


def _of_group(one: StageEstimate, two: StageEstimate, group: int, rows: int) -> StageEstimate:
    """The memory of a group of micro-batches of `rows` rows."""

    def grown(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
        return {name: rows * (n + (group - 1) * (second[name] - n)) for name, n in first.items()}

    host = grown({"host": one.host}, {"host": two.host})["host"]
    return dataclasses.replace(one, kept=grown(one.kept, two.kept), peak=grown(one.peak, two.peak), host=host)


def _of_rows(activations: ActivationMemory, rows: int) -> ActivationMemory:
    """Activations of one row as those of `rows` rows. Gradients of weights grow with them here, though they do not."""

    def grown(segment: SegmentMemory) -> SegmentMemory:
        return SegmentMemory(*(size * rows for size in dataclasses.astuple(segment)))

    return dataclasses.replace(
        activations,
        rows=rows,
        blocks={letter: grown(segment) for letter, segment in activations.blocks.items()},
        cached={letter: grown(segment) for letter, segment in activations.cached.items()},
        head=grown(activations.head),
        norm=grown(activations.norm),
    )


def _time(layout: Layout, sample: _Sample, hardware: Hardware) -> StepTime:
    """A group of G micro-batches on P stages takes G turns a pass, and P - 1 turns until the last stage has work; recompute needs no
    gradient, and is done meanwhile.

    A micro-batch comes back to a stage after P turns and P messages: where that is longer than the G turns of a pass, it is waited
    for.
    """
    mesh, batch = layout.job.mesh, layout.batch
    rows = batch.micro * batch.micro_batches
    flops = max(stage.flops for stage in sample.stages)
    filled = max(stage.one.forward + stage.one.backward for stage in sample.stages)
    turn = batch.micro * flops / hardware.speed / sample.passes
    link = hardware.bandwidth_of_message(mesh.pipe, batch.data * mesh.tensor)
    sent_by_pass = batch.micro * max(stage.pipe for stage in sample.stages) / sample.passes
    message = sent_by_pass / link + hardware.latency
    exposed = 0.0
    if mesh.pipe > 1:
        forward = turn * max(stage.one.forward for stage in sample.stages) / flops
        waited = sum(_waited(mesh.pipe, batch.group, half, message / 2) for half in (forward, turn - forward))
        exposed = batch.accumulation * (sample.passes * waited + (mesh.pipe - 1) * message)
    data = [data_axis(layout, stage.held) for stage in sample.stages]
    sent: dict[str, float | None] = {
        "tensor": max(stage.tensor for stage in sample.stages) * rows,
        "data": None if None in data else max(n for n in data if n is not None),
        "pipe": sent_by_pass * sample.passes * batch.micro_batches,
    }
    reductions = batch.micro_batches * max(stage.reductions for stage in sample.stages)
    return StepTime(
        rows * flops / hardware.speed,
        batch.accumulation * (mesh.pipe - 1) * turn * filled / flops,
        axis_times(hardware, mesh, batch.data, sent, exposed, reductions),
    )


def _waited(stages: int, group: int, turn: float, message: float) -> float:
    """Seconds of a pass, forward or backward, in which a stage waits for messages."""
    return max(0.0, stages * (turn + message) - group * turn, group * (message - turn))
