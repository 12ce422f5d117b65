"""Bytes that one process sends in a step, by axis of the mesh. Reductions are counted as ring collectives send them."""

from __future__ import annotations

from sleeptrain.plan.ownership import StageParameters
from sleeptrain.program import Pass
from sleeptrain.schedule import Costs, Estimate, Schedule
from sleeptrain.train.kernels import DTYPES
from sleeptrain.train.layout import Layout

Traffic = dict[str, float | None]
"""Bytes by axis: `data`, `pipe`, `tensor`, and `host` for activation offload and its return. None: not estimated."""


def traffic_of(layout: Layout, stage: int, held: StageParameters, costs: Costs, estimated: Estimate) -> Traffic:
    """Bytes that one process of a stage sends in a step."""
    accumulation = layout.batch.accumulation
    pipe = sum(size for edge, size in estimated.traffic.items() if edge.src == stage)
    return {
        "data": data_axis(layout, held),
        "pipe": pipe * accumulation,
        "tensor": tensor_axis(layout, layout.schedule, stage, costs) * accumulation,
        "host": 2 * estimated.stages[stage].host * accumulation,
    }


def data_axis(layout: Layout, held: StageParameters) -> float | None:
    """Bytes over the data axis in a step; None: not estimated.

    Gradients of trained weights are reduced in fp32, once a step or, under ZeRO 2, once a backward; then new parameters are gathered. Under ZeRO 3 the
    traffic depends on which parameters DeepSpeed keeps gathered between uses.
    """
    data, zero = layout.batch.data, layout.job.mesh.zero
    if zero == 3:
        return None if data > 1 else 0.0
    ring, weight_bytes = (data - 1) / data, DTYPES[layout.job.train.precision].itemsize
    reduced = 2 * 4 * held.trained_elements * (layout.batch.accumulation if zero == 2 else 1)
    return ring * (reduced + weight_bytes * held.trained_elements)


def tensor_axis(layout: Layout, schedule: Schedule, stage: int, costs: Costs) -> float:
    """Bytes over the tensor axis in one run of a schedule. Sequence parallelism sends as much."""
    size = layout.job.mesh.tensor
    _, reduced = tensor_reductions(layout, schedule, stage)
    token_bytes = layout.job.model.width * DTYPES[layout.job.train.precision].itemsize
    return 2 * (size - 1) / size * reduced * costs.sizes.rows * token_bytes


def tensor_reductions(layout: Layout, schedule: Schedule, stage: int) -> tuple[int, int]:
    """All-reduces over the tensor axis in one run of a schedule, and the tokens of a row in all of them.

    Features are reduced behind the mixer and the MLP of every block, their gradients before them; and once at the embedding and in
    the backward of the head. Sequence parallelism has two messages in place of each.
    """
    at = schedule.stages[stage]
    if layout.job.mesh.tensor == 1:
        return 0, 0
    messages = reduced = 0
    for n, action in enumerate((*at.forward, *at.backward)):
        if action.edge is not None:
            continue
        op, stage_op = schedule.program.ops[action.op], at.ops[action.op]
        assert isinstance(op, Pass)
        if action.kind == "LOSS":
            count = int(n >= len(at.forward))
        else:
            count = 2 * len(range(*stage_op.blocks)) + (stage_op.h is None and action.kind != "BWD")
        messages += count * (2 if layout.job.mesh.sequence else 1)
        reduced += count * (op.stop - op.start)
    return messages, reduced
