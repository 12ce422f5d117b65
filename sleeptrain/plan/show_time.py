"""Step time, length and price of a run, as text for a terminal and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from sleeptrain.plan.hardware import Hardware
from sleeptrain.plan.memory import lane_bytes, size
from sleeptrain.plan.optimizer_memory import FP32, optimizer_bytes
from sleeptrain.plan.plan import Plan
from sleeptrain.plan.step_time import WHEN, AxisTime, RunTime, StepTime, run_time


def checkpoint_bytes(plan: Plan) -> tuple[float, float]:
    """Bytes of a checkpoint: fp32 parameters and moments of the whole model; and the state that the lanes of all rows carry."""
    mesh, layout = plan.job.mesh, plan.layout
    lanes = 0.0
    if plan.job.data.lane is not None:
        of_stages = (lane_bytes(layout, plan.costs.sizes, held.blocks) for held in plan.parameters.stages)
        lanes = layout.batch.data * mesh.tensor * sum(of_stages)
    return optimizer_bytes(plan.job, plan.parameters.kinds) + FP32 * plan.parameters.frozen, lanes


def time_text(plan: Plan, time: StepTime, hardware: Hardware) -> str:
    """The lines of a plan about time and price."""
    return "\n".join(_lines(plan, time, hardware))


def _lines(plan: Plan, time: StepTime, hardware: Hardware) -> Iterator[str]:
    run = run_time(plan, time, hardware)
    yield f"hardware           {hardware}"
    yield f"time of a step     {_seconds(time.seconds)}"
    yield f"  computing        {_seconds(time.work)}, on the busiest stage"
    if time.idle:
        yield f"  idle             {_seconds(time.idle)}, the busiest stage waits for others"
    yield from map(_axis, time.messages)
    if run is not None:
        yield f"tokens a second    {run.tokens / run.seconds:,.0f}; model FLOPs are {run.mfu:.1%} of the peak"
        yield _run(run)
        if len(plan.job.sleep.shares_of_passes(run.steps)) > 1:
            most = plan.job.sleep.max_passes
            yield f"                   with {run.passes:.3g} passes a step in the mean, at most {most}; the time of a step is that of {most}"
    stored, lanes = checkpoint_bytes(plan)
    yield f"a checkpoint       {size(stored + lanes)}" + (f", {size(lanes)} of it state of lanes" if lanes else "")
    omitted = ["time of the optimizer, of reading data, evaluation and saving"]
    omitted += [] if hardware.latency else ["latency of messages (hardware.latency is 0)"]
    omitted += ["transfers of train.offload"] if plan.job.train.offload else []
    omitted += ["messages of ZeRO 3"] if time.seconds is None else []
    yield f"Not in the time: {'; '.join(omitted)}."


def _axis(axis: AxisTime) -> str:
    if axis.sent is None or axis.seconds is None:
        return f"  {axis.axis} messages".ljust(19) + "not known"
    told = f"{_seconds(axis.exposed)} of {_seconds(axis.seconds)} waited for"
    return (
        f"  {axis.axis} messages".ljust(19) + f"{told}: {size(axis.sent)} at {_rate(axis.bandwidth)}, {WHEN[axis.axis]}"
    )


def _run(run: RunTime) -> str:
    cost = "" if run.cost is None else f", which cost {run.cost:,.0f} at {run.price:g} an hour"
    return f"the whole run      {run.days:,.3g} days, {run.gpu_hours:,.{0 if run.gpu_hours >= 100 else 2}f} GPU-hours{cost}"


def _rate(bandwidth: float) -> str:
    return f"{bandwidth / 1e9:,.3g} GB/s"


def _seconds(seconds: float | None) -> str:
    return "not known" if seconds is None else f"{seconds:.3g} s"


def time_json(plan: Plan, time: StepTime, hardware: Hardware) -> dict[str, Any]:
    """The same as JSON values: seconds, bytes, bytes a second."""
    run, (stored, lanes) = run_time(plan, time, hardware), checkpoint_bytes(plan)
    return {
        "hardware": asdict(hardware),
        "step": {
            "seconds": time.seconds, "work": time.work, "idle": time.idle,
            "messages": {axis.axis: {"sent": axis.sent, "bandwidth": axis.bandwidth, "exposed": axis.exposed} for axis in time.messages},
        },
        "run": None if run is None else {
            "seconds_per_step": run.seconds, "passes": run.passes, "tokens_per_second": run.tokens / run.seconds, "mfu": run.mfu, "days": run.days, "gpu_hours": run.gpu_hours, "cost": run.cost,
        },
        "checkpoint": stored + lanes, "lanes": lanes,
    }  # fmt: skip
