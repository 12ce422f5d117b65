"""Bytes that one process needs: parameters, optimizer, gradients, saved activations, and temporaries of the work itself.

Gradients are held differently in every phase of a step: backward, reduction, update. Which phase has the peak depends on
precision, ZeRO stage and gradient accumulation, so all are estimated. What DeepSpeed 0.19.8 allocates in which phase was
measured in storages of tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import get_args

from sleeptrain.engine.optimizers import Kind
from sleeptrain.engine.settings import LARGEST_BUCKET
from sleeptrain.plan.activations import ActivationMemory
from sleeptrain.plan.block_kinds import BlockKind, block_kinds
from sleeptrain.plan.optimizer_memory import FP32, optimizer_bytes, optimizer_work
from sleeptrain.plan.ownership import StageParameters
from sleeptrain.plan.segment_memory import SegmentMemory
from sleeptrain.program import kept_tokens
from sleeptrain.schedule import StageEstimate, Temporaries, ValueSizes
from sleeptrain.train.job import Job
from sleeptrain.train.kernels import DTYPES
from sleeptrain.train.layout import Layout
from sleeptrain.train.trained import trained_weights

BF16_ZERO1_BUCKET = 500_000_000
"""Number of elements with which DeepSpeed (0.19.8) sends a message of its bf16 optimizer at ZeRO 1."""


@dataclass(frozen=True)
class StepPhase:
    """One phase of a step: bytes by component, beside parameters and optimizer."""

    name: str
    gradients: float
    kept: Mapping[str, float]
    """Saved activations by component: h, received h, S, conv, kv, body (autograd graphs), gradients (of activations)."""
    work: float = 0.0
    """Temporaries of the operators."""

    @property
    def total(self) -> float:
        """All components together."""
        return self.gradients + sum(self.kept.values()) + self.work


@dataclass(frozen=True)
class ProcessMemory:
    """Bytes of one process of a stage."""

    parameters: float
    optimizer: float
    """This process's partition of fp32 master weights and moments."""
    phases: tuple[StepPhase, ...]
    """Of a step, in order."""
    saved: Mapping[str, float]
    """Saved activations on the device between forward and backward, by component."""
    host: float
    """Saved activations offloaded to the host's memory."""
    lanes: float = 0.0
    """State that rows carry from step to step, before and after a step."""

    @property
    def peak(self) -> StepPhase:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def graphs(self) -> float:
        """What CUDA graphs may hold beside all this: temporaries and autograd graph of a pass, once in the pool of the graphs, and once
        in the cache of the stream on which they were captured."""
        backward = self.phases[0]
        return 2 * (backward.kept.get("body", 0.0) + backward.work)

    @property
    def total(self) -> float:
        """Bytes at the peak."""
        return self.parameters + self.optimizer + self.lanes + self.peak.total


def memory_of(layout: Layout, held: StageParameters, stage: StageEstimate, sizes: ValueSizes) -> ProcessMemory:
    """Bytes of a process that holds the parameters `held` and runs one stage, whose `moment` was found with `temporaries_of`."""
    job, partition = layout.job, held.partition(layout.batch.data)
    optimizer = optimizer_bytes(job, partition)
    elements = held.elements if job.mesh.zero < 3 else held.partitioned(layout.batch.data)
    gradients = _gradients(job, held, layout.batch.data, layout.batch.accumulation)
    at_peak = gradients["backward"] - gradients_of_backward(job, held) + stage.moment.grads
    backward = StepPhase("backward", at_peak, stage.peak, stage.moment.work)
    rest = [StepPhase(name, size, {}) for name, size in gradients.items() if name != "backward"]
    parameters = DTYPES[job.train.precision].itemsize * elements
    lanes = 2 * lane_bytes(layout, sizes, held.blocks) if job.data.lane is not None else 0.0
    return ProcessMemory(parameters, optimizer, (backward, *rest), stage.kept, stage.host, lanes)


def lane_bytes(layout: Layout, sizes: ValueSizes, blocks: tuple[int, int]) -> float:
    """Bytes of the state that the rows of a process carry from step to step, for these blocks."""
    cached = kept_tokens(layout.job.sleep)
    per_row = sum(sizes.fast[b] + sizes.conv[b] + sizes.kv[b] * cached for b in range(*blocks))
    return layout.batch.micro * layout.batch.micro_batches * per_row


def temporaries_of(job: Job, held: StageParameters, activations: ActivationMemory) -> Temporaries:
    """What the actions of a stage need beside the values that they read and write."""
    kinds = block_kinds(job.model, trained_weights(job))
    blocks = [max(float(m.work) for m in _measured(kind, activations)) for kind in kinds]
    grads, ends = [0.0] * len(kinds), {"head": 0.0, "embed": 0.0}
    tied_head = job.model.tie and held.blocks[1] == len(kinds)
    for name, elements in held.trained.items():
        size = float(_allocated_in_backward(job) * elements)
        if name.startswith("layers."):
            grads[int(name.split(".")[1])] += size
        else:
            ends["embed" if name.startswith("embed.") and not tied_head else "head"] += size
    embed = DTYPES[job.train.precision].itemsize * float(held.trained.get("embed.weight", 0))
    return Temporaries(blocks, _head(job, activations), embed, grads, ends["head"], ends["embed"])


def _measured(kind: BlockKind, activations: ActivationMemory) -> list[SegmentMemory]:
    """A kind of block with an empty cache, and with a full one where it has one."""
    return [found[kind] for found in (activations.blocks, activations.cached) if kind in found]


def _head(job: Job, activations: ActivationMemory) -> float:
    """Temporaries of the head. One recompute policy keeps the head's graph; under the others the graph exists only while the head
    runs and counts here."""
    return float(activations.head.work if job.train.schedule_policy == "none" else activations.head.peak)


def temporaries_of_stage(job: Job, held: StageParameters, activations: ActivationMemory) -> float:
    """Temporaries of the segment of a stage that needs most."""
    first, stop = held.blocks
    kinds = set(block_kinds(job.model, trained_weights(job))[first:stop])
    sizes = [float(segment.work) for kind in kinds for segment in _measured(kind, activations)]
    return max([*sizes, _head(job, activations)] if stop == len(job.model.pattern) else sizes)


def _allocated_in_backward(job: Job) -> int:
    """Bytes per element of gradients that backward allocates where it first reaches a weight, rather than before it."""
    weight = DTYPES[job.train.precision].itemsize
    if job.mesh.zero == 3:
        return weight
    # CUDA graphs add to sums at fixed addresses, and a backward in bf16 at ZeRO 1 to those that DeepSpeed reduces.
    return 0 if job.train.graphed or (weight < FP32 and job.mesh.zero == 1) else FP32


def gradients_of_backward(job: Job, held: StageParameters) -> float:
    """Bytes of the gradients of weights that backward allocates."""
    return float(_allocated_in_backward(job) * held.trained_elements)


def _gradients(job: Job, held: StageParameters, data: int, accumulation: int) -> dict[str, float]:
    """Bytes of gradients and of their copies in the last backward, in its reduction over the data axis, and in the update.

    Frozen weights have none. The whole gradient of this process's parameters exists until the end of backward, whatever the ZeRO stage: the gradient of
    a looped weight is complete only there.
    """
    partition = held.partition(data)
    n, p = held.trained_elements, sum(partition.values())
    bucket = max(*held.trained.values(), min(n, LARGEST_BUCKET))
    weight, zero = DTYPES[job.train.precision].itemsize, job.mesh.zero
    accumulator = FP32 * n
    several = accumulation > 1
    # CUDA graphs add to accumulators at fixed addresses, which are never freed.
    static = accumulator if job.train.graphed else 0
    if zero == 3:
        # The bucket and this process's gradient partition always exist, in float32. Where parameters are partitioned they are gathered
        # for use, all of them if loops reuse them, and autograd accumulates gradients in the parameters' dtype.
        always, gathered = FP32 * (bucket + p), weight * held.elements if p < n else 0
        accumulator = weight * n + gathered
        earlier, reduction, update, copy = always, always + accumulator, always, FP32
    elif weight == FP32:
        # The accumulator is the gradient. Over several backwards ZeRO 1 accumulates whole gradients, and ZeRO 2 those of all weights that
        # reach into the partition.
        partitions = FP32 * held.touched(data) if several and zero == 2 else 0
        earlier = FP32 * (n + bucket) if several and zero == 1 else partitions
        reduction = partitions + FP32 * (n + max(bucket, p))
        update, copy = FP32 * p, FP32
    elif zero == 1:
        # The accumulator is the gradient that DeepSpeed reduces, and always exists. A tied embedding of two stages is summed apart.
        tied = held.trained.get("embed.weight", 0) if job.model.tie and job.mesh.pipe > 1 else 0
        earlier, update, copy = FP32 * tied, FP32 * n, 0
        static = FP32 * tied if job.train.graphed else 0
        reduction = FP32 * n + _flattened([held.kinds.get(group, 0) for group in get_args(Kind)])
    else:
        earlier = FP32 * p if several else 0
        reduction, update, copy = weight * n + (weight + FP32) * bucket + FP32 * p, FP32 * p, 0
    return {
        "backward": float(accumulator + earlier),
        "reduction": float(reduction + static),
        "update": float(update + static + optimizer_work(job, held, partition, copy)),
    }


def _flattened(groups: Iterable[int]) -> int:
    """Bytes of the largest copy that the reduction of flat gradients makes: DeepSpeed concatenates those of the parameter groups,
    in the order of `engine.optimizers.Kind`, until they have BF16_ZERO1_BUCKET elements. It does not copy one that is alone."""
    messages: list[list[int]] = [[]]
    for elements in groups:
        messages[-1].append(elements)
        if sum(messages[-1]) > BF16_ZERO1_BUCKET:
            messages.append([])
    return max(FP32 * sum(message) if len(message) > 1 else 0 for message in messages)


def size(n: float) -> str:
    """Bytes with a unit: `3.74 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(n) < 1024 or unit == "TiB":
            break
        n /= 1024
    return f"{n:.0f} {unit}" if unit == "B" else f"{n:.3g} {unit}" if n < 1000 else f"{n:.0f} {unit}"
