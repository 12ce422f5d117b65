"""Seconds of a step on given hardware: computation, idle stages, and what of the messages of every axis is waited for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from sleeptrain.parallel.config import Mesh
from sleeptrain.plan.hardware import Hardware
from sleeptrain.plan.plan import Plan
from sleeptrain.plan.traffic import tensor_reductions
from sleeptrain.schedule.estimate import simulate_costs

WHEN = {
    "tensor": "inside every block, where nothing hides them",
    "data": "after backward, which completes the gradients of looped weights; nothing hides them",
    "pipe": "hidden by the work on other micro-batches",
}
"""When the messages of an axis are sent."""


@dataclass(frozen=True)
class AxisTime:
    """Messages over one axis of the mesh in a step."""

    axis: str
    sent: float | None
    """Bytes of the process that sends most; None: not estimated."""
    bandwidth: float
    """Bytes a second of one process."""
    exposed: float | None
    """Seconds of the step in which messages are waited for; None: not estimated."""
    latency: float = 0.0
    """Seconds of the messages beside those of their bytes."""

    @property
    def seconds(self) -> float | None:
        """Seconds that the messages take."""
        return None if self.sent is None else self.sent / self.bandwidth + self.latency


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step. The optimizer, reading data and offload are left out."""

    work: float
    """Forward, recompute and backward of the busiest stage."""
    idle: float
    """What the busiest stage waits for other stages."""
    messages: tuple[AxisTime, ...]
    """By axis of more than one process."""

    @property
    def seconds(self) -> float | None:
        """All of it; None where the messages of an axis are not estimated."""
        exposed = [axis.exposed for axis in self.messages]
        known = [seconds for seconds in exposed if seconds is not None]
        return self.work + self.idle + sum(known) if len(known) == len(exposed) else None


def step_time(plan: Plan, hardware: Hardware) -> StepTime:
    """The seconds of a step of a plan. Idle stages and the messages between them are simulated action by action."""
    mesh, batch = plan.job.mesh, plan.layout.batch
    costs = dataclasses.replace(plan.costs, speed=hardware.speed)
    stages = plan.estimate.stages
    work = max(stage.forward + stage.recompute + stage.backward for stage in stages) / hardware.speed
    alone = waiting = plan.estimate.seconds * plan.costs.speed / hardware.speed
    if mesh.pipe > 1:
        link = hardware.bandwidth_of_message(mesh.pipe, batch.data * mesh.tensor)
        waiting = simulate_costs(
            plan.schedule, dataclasses.replace(costs, bandwidth=link, latency=hardware.latency)
        ).seconds
    sent = {axis: _most([traffic[axis] for traffic in plan.traffic]) for axis in ("tensor", "data", "pipe")}
    n = batch.accumulation
    reductions = n * max(tensor_reductions(plan.layout, plan.schedule, s)[0] for s in range(len(stages)))
    messages = axis_times(hardware, mesh, batch.data, sent, n * (waiting - alone), reductions)
    return StepTime(n * work, n * max(0.0, alone - work), messages)


def axis_times(
    hardware: Hardware, mesh: Mesh, data: int, sent: Mapping[str, float | None], pipe_exposed: float, reductions: int
) -> tuple[AxisTime, ...]:
    """The messages of every axis of more than one process, from the bytes that a process sends over it in a step.

    Ranks are numbered tensor first, then data, then pipe. `pipe_exposed`: seconds in which stages wait for messages.
    `reductions`: all-reduces over the tensor axis; over the data axis there are two collectives, of gradients and parameters.
    """
    links = {
        "tensor": (mesh.tensor, hardware.bandwidth_of_ring(mesh.tensor, 1)),
        "data": (data, hardware.bandwidth_of_ring(data, mesh.tensor)),
        "pipe": (mesh.pipe, hardware.bandwidth_of_message(mesh.pipe, data * mesh.tensor)),
    }
    found = []
    for axis, (size, bandwidth) in links.items():
        if size > 1:
            latency = hardware.latency * {"tensor": reductions, "data": 2, "pipe": 0}[axis]
            time = AxisTime(axis, sent[axis], bandwidth, None, latency)
            found.append(dataclasses.replace(time, exposed=pipe_exposed if axis == "pipe" else time.seconds))
    return tuple(found)


def _most(sizes: list[float | None]) -> float | None:
    known = [n for n in sizes if n is not None]
    return max(known) if len(known) == len(sizes) else None


@dataclass(frozen=True)
class RunTime:
    """What a whole run takes, from the seconds of a step."""

    seconds: float
    """Of a step, in the mean over the run: a ramp or a draw of passes has fewer than the most in many steps."""
    passes: float
    """Of a step, in the mean."""
    steps: int
    world: int
    tokens: float
    """Tokens of a step without padding, where the padding is known."""
    mfu: float
    """Model FLOPs (passes count, recompute does not) as a share of the peak of all GPUs."""
    price: float | None

    @property
    def days(self) -> float:
        """Days of the run."""
        return self.seconds * self.steps / 86400

    @property
    def gpu_hours(self) -> float:
        """GPU-hours of the run."""
        return self.days * 24 * self.world

    @property
    def cost(self) -> float | None:
        """Price of the run; None without the price of a GPU-hour."""
        return None if self.price is None else self.gpu_hours * self.price


def run_time(plan: Plan, time: StepTime, hardware: Hardware) -> RunTime | None:
    """What the run of a plan takes; None where the seconds of a step are not known."""
    if time.seconds is None:
        return None
    layout, peak = plan.layout, hardware.flops * plan.layout.world
    tokens = layout.tokens_per_step * (1 - (layout.padding or 0))
    mfu, shares = plan.flops / (time.seconds * peak), plan.job.sleep.shares_of_passes(layout.steps)
    seconds, passes = time.seconds, sum(n * share for n, share in shares.items())
    if len(shares) > 1:
        # Gradients and parameters are sent once a step; all else grows with its FLOPs.
        once = sum(axis.exposed or 0.0 for axis in time.messages if axis.axis == "data")
        mean = sum(share * plan.flops_at(n) for n, share in shares.items()) / plan.flops
        seconds = (seconds - once) * mean + once
    return RunTime(seconds, passes, layout.steps, layout.world, tokens, mfu, hardware.price)
