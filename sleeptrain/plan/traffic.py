"""Bytes that one process sends in a step, by axis of the mesh. Sums over several processes are priced as rings send them."""

from __future__ import annotations

from sleeptrain.plan.ownership import StageParameters
from sleeptrain.program import Pass
from sleeptrain.schedule import Costs, Estimate, Schedule
from sleeptrain.train.job import Job
from sleeptrain.train.kernels import DTYPES

Traffic = dict[str, float | None]
"""By axis: `data`, `pipe`, `tensor`, and `host` for what is put away there and fetched again. None: not worked out."""


def traffic_of(
    job: Job, stage: int, share: StageParameters, data: int, accumulation: int, schedule: Schedule, costs: Costs, price: Estimate
) -> Traffic:  # fmt: skip
    """What one process of a stage sends in a step of `accumulation` backwards."""
    pipe = sum(size for edge, size in price.traffic.items() if edge.src == stage)
    return {
        "data": _over_data(job, share, data, accumulation),
        "pipe": pipe * accumulation,
        "tensor": _over_tensor(job, stage, schedule, costs) * accumulation,
        "host": 2 * price.stages[stage].host * accumulation,
    }


def _over_data(job: Job, share: StageParameters, data: int, accumulation: int) -> float | None:
    """Gradients are summed in fp32, once a step or, at ZeRO 2, once a backward; new parameters are collected. At ZeRO 3 it
    depends on what DeepSpeed keeps gathered between uses."""
    if job.mesh.zero == 3:
        return None if data > 1 else 0.0
    ring, weight = (data - 1) / data, DTYPES[job.train.precision].itemsize
    sums = 2 * 4 * share.elements * (accumulation if job.mesh.zero == 2 else 1)
    return ring * (sums + weight * share.elements)


def _over_tensor(job: Job, stage: int, schedule: Schedule, costs: Costs) -> float:
    """Features are summed behind the mixer and the MLP of every block, their gradients before them; and once at the entry of
    tokens and in the backward of the head. Sharing the tokens in between (mesh.sequence) sends as much."""
    size, at = job.mesh.tensor, schedule.stages[stage]
    if size == 1:
        return 0.0
    sums = 0
    for n, action in enumerate((*at.forward, *at.backward)):
        if action.edge is not None:
            continue
        op, item = schedule.program.ops[action.op], at.ops[action.op]
        assert isinstance(op, Pass)
        tokens = (op.stop - op.start) * costs.sizes.rows
        if action.kind == "LOSS":
            sums += tokens if n >= len(at.forward) else 0
        else:
            sums += tokens * (2 * len(range(*item.blocks)) + (item.h is None and action.kind != "BWD"))
    whole = job.model.width * DTYPES[job.train.precision].itemsize
    return 2 * (size - 1) / size * sums * whole
