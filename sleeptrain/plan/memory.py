"""Bytes that one process needs: parameters, optimizer, gradients, what waits for backward, and what work needs for itself.

Gradients live differently in every moment of a step, and so does the sum. Which moment needs most depends on precision, ZeRO
stage and accumulation; all are worked out. What DeepSpeed 0.19.8 holds when was measured with torch's allocator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from sleeptrain.engine.optimizers import Kind
from sleeptrain.engine.settings import LARGEST_BUCKET
from sleeptrain.plan.activations import ActivationMemory, SegmentMemory
from sleeptrain.plan.ownership import StageParameters
from sleeptrain.schedule import StageEstimate
from sleeptrain.train.job import Job
from sleeptrain.train.kernels import DTYPES

FP32 = 4
WHOLE_BUCKET = 500_000_000
"""Elements that DeepSpeed's optimizer for bf16 at ZeRO 1 reduces in one message, at most."""


@dataclass(frozen=True)
class StepPhase:
    """One moment of a step: bytes by component, beside parameters and optimizer."""

    name: str
    gradients: float
    kept: Mapping[str, float]
    """What waits for backward: h, received h, S, conv, kv, body (graphs), gradients (adjoints)."""
    work: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.gradients + sum(self.kept.values()) + self.work


@dataclass(frozen=True)
class ProcessMemory:
    """Bytes of one process of a stage."""

    parameters: float
    optimizer: float
    """Master weights in fp32 and moments, this process's part."""
    moments: tuple[StepPhase, ...]
    """Of a step, in order."""
    turn: Mapping[str, float]
    """What waits for backward when it could begin, on the device."""
    host: float
    """What waits there in the host's memory."""

    @property
    def worst(self) -> StepPhase:
        """The moment that needs most."""
        return max(self.moments, key=lambda moment: moment.total)

    @property
    def total(self) -> float:
        """At that moment."""
        return self.parameters + self.optimizer + self.worst.total


def memory_of(
    job: Job, share: StageParameters, data: int, accumulation: int, price: StageEstimate, graphs: ActivationMemory
) -> ProcessMemory:
    """Bytes of a process that holds `share`, when `data` processes share the rows and a step has `accumulation` backwards."""
    weight, part = DTYPES[job.train.precision].itemsize, share.partition(data)
    moments: Mapping[Kind, int] = {"matrix": 1 if job.optim.name == "muon" else 2, "other": 2, "plain": 2}
    optimizer = sum(FP32 * (1 + moments[which]) * n for which, n in part.items())
    parameters = weight * (share.elements if job.mesh.zero < 3 else sum(part.values()))
    gradients = _gradients(job, share, part, accumulation)
    backward = StepPhase("backward", gradients["backward"], price.peak, _work(job, share, graphs))
    rest = [StepPhase(name, size, {}) for name, size in gradients.items() if name != "backward"]
    return ProcessMemory(parameters, optimizer, (backward, *rest), price.kept, price.host)


def _work(job: Job, share: StageParameters, graphs: ActivationMemory) -> float:
    """What the hungriest piece of work of a stage needs for itself. The head's graph is kept by one policy only, so under the
    others it counts here."""
    first, stop = share.blocks
    pieces: list[SegmentMemory] = [graphs.blocks[letter] for letter in set(job.model.pattern[first:stop])]
    pieces += [graphs.cached] if graphs.cached is not None and "A" in job.model.pattern[first:stop] else []
    found = [float(piece.work) for piece in pieces]
    if stop == len(job.model.pattern):
        found.append(graphs.head.work + (0 if job.train.recompute == "none" else graphs.head.kept))
    return max(found)


def _gradients(job: Job, share: StageParameters, part: Mapping[Kind, int], accumulation: int) -> dict[str, float]:
    """Bytes of gradients, and of what is made of them, in the last backward, in its reduction over the data axis, and in the
    update. In every one of them the whole gradient of this process's parameters exists until the end of backward: a looped
    weight's is complete only there, whatever the ZeRO stage."""
    n, p = share.elements, sum(part.values())
    bucket = max(*share.sizes.values(), min(n, LARGEST_BUCKET))
    weight, zero = DTYPES[job.train.precision].itemsize, job.mesh.zero
    sums = n * max(weight, getattr(torch, job.optim.sum_dtype).itemsize)
    again = accumulation > 1
    if zero == 3:
        # Its bucket and its part of the gradient exist always. Parameters are gathered for their use where they are divided,
        # all of them where loops use them again and again, and autograd sums their gradients in their own type.
        always, gathered = weight * bucket + FP32 * p, weight * n if p < n else 0
        sums = weight * n + gathered
        waiting, reduction, update, flat = always, always + sums, always, 0
    elif weight == FP32:
        # The sums are the gradients. ZeRO 1 adds those of several backwards up before it reduces; ZeRO 2 their parts.
        waiting = 0 if not again else FP32 * (n + bucket if zero == 1 else p)
        reduction = (FP32 * p if again and zero > 1 else 0) + FP32 * (n + max(bucket, p))
        update, flat = FP32 * p, FP32
    elif zero == 1:
        # A whole gradient in fp32 exists always, and rounded ones stay until the step.
        waiting, update, flat = FP32 * n + (weight * n if again else 0), (FP32 + weight) * n, 0
        reduction = (FP32 + weight) * n + FP32 * min(n, WHOLE_BUCKET)
    else:
        waiting = FP32 * p if again else 0
        reduction, update, flat = weight * n + (weight + FP32) * bucket + FP32 * p, FP32 * p, 0
    # Recordings add to sums that stay where they are.
    stays = sums if job.train.cuda_graphs else 0
    return {
        "backward": float(sums + waiting),
        "reduction": float(reduction + stays),
        "update": float(update + stays + _updating(job, share, part, flat)),
    }


def _updating(job: Job, share: StageParameters, part: Mapping[Kind, int], flat: int) -> float:
    """What the optimizer itself needs, one group of parameters after the other: AdamW two numbers for every one, Muon one and
    the largest matrix several times. `flat`: bytes of a copy of the gradient made for it."""
    found = []
    for which, n in part.items():
        if which == "matrix" and job.optim.name == "muon":
            found.append((flat + FP32) * n + 7 * FP32 * max(share.sizes.values()))
        else:
            found.append((flat + 2 * FP32) * n)
    return max(found)
