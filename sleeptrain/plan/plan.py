"""A plan of a run before it starts: parameters, memory and traffic of every process, FLOPs, pipeline bubbles."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sleeptrain.model.counts import step_flops
from sleeptrain.plan.costs import costs_of, layer_activations
from sleeptrain.plan.data_layout import DataLayout
from sleeptrain.plan.memory import ProcessMemory, memory_of, temporaries_of
from sleeptrain.plan.ownership import Parameters, parameter_ownership
from sleeptrain.plan.traffic import Traffic, traffic_of
from sleeptrain.recipe.recipe import Recipe
from sleeptrain.schedule import Balance, Costs, Estimate, Schedule, checked, estimate
from sleeptrain.train.job import Job
from sleeptrain.train.layout import Layout
from sleeptrain.train.trained import trained_weights


@dataclass(frozen=True)
class Plan:
    """What a run will need. FLOPs, seconds and bytes are those of the largest number of passes."""

    layout: Layout
    data_layout: DataLayout
    speed: float | None
    """FLOPs a second of one process; None: seconds are not estimated."""
    parameters: Parameters
    costs: Costs
    estimate: Estimate
    """Of one group of micro-batches; a step repeats it."""
    memory: tuple[ProcessMemory, ...]
    """Of a process of each stage."""
    traffic: tuple[Traffic, ...]
    """Of a process of each stage, in a step."""
    flops: float
    """Model FLOPs of a step over all processes: passes count, recompute does not."""

    @property
    def job(self) -> Job:
        """The complete job."""
        return self.layout.job

    @property
    def schedule(self) -> Schedule:
        """Of one group of micro-batches."""
        return self.layout.schedule

    def flops_at(self, passes: int) -> float:
        """Model FLOPs of a step of `passes` passes over all processes."""
        return _step_flops(self.layout, passes)

    @property
    def recompute_flops(self) -> float:
        """FLOPs of a step that recompute activations, over all processes."""
        groups = self.layout.batch.accumulation * self.layout.batch.data * self.job.mesh.tensor
        return groups * sum(stage.recompute for stage in self.estimate.stages)

    @property
    def seconds(self) -> float | None:
        """Seconds of a step's forward and backward; None where the speed is unknown."""
        return None if self.speed is None else self.estimate.seconds * self.layout.batch.accumulation

    @property
    def balance(self) -> Balance:
        """Where the stack is cut, and the FLOPs of every stage."""
        return _balance(self.layout, self.estimate)


def planned_world(recipe: Recipe, processes: int | None) -> int:
    """The number of processes that a plan is for: `processes`, or those that the mesh names (one on the data axis if it is 0)."""
    mesh = recipe.mesh
    return processes or max(1, mesh.data) * mesh.pipe * mesh.tensor


def make_plan(layout: Layout, data_layout: DataLayout, speed: float | None = None) -> Plan:
    """The plan of a run; nothing of the model's size is allocated. `speed`: FLOPs a second of one process."""
    activations = layer_activations(layout, data_layout.mask)
    parameters = parameter_ownership(layout)
    temporaries = tuple(temporaries_of(layout.job, held, activations) for held in parameters.stages)
    costs = replace(costs_of(layout, activations, speed), temporaries=temporaries)
    estimated = estimate(checked(layout.schedule), costs)
    stages = list(enumerate(zip(parameters.stages, estimated.stages, strict=True)))
    return Plan(
        layout, data_layout, speed, parameters, costs, estimated,
        tuple(memory_of(layout, held, stage, costs.sizes) for _, (held, stage) in stages),
        tuple(traffic_of(layout, index, held, costs, estimated) for index, (held, _) in stages),
        _step_flops(layout),
    )  # fmt: skip


def _step_flops(layout: Layout, passes: int | None = None) -> float:
    """Model FLOPs of a step over all processes, of `passes` passes or the largest number."""
    job = layout.job
    return step_flops(job.model, layout.program(passes), job.sleep, trained_weights(job)) * job.train.batch


def stage_balance(layout: Layout) -> Balance:
    """Where the stack is cut, and the FLOPs of every stage in one group of micro-batches."""
    return _balance(layout, estimate(layout.schedule, costs_of(layout)))


def _balance(layout: Layout, estimated: Estimate) -> Balance:
    flops = tuple(stage.forward + stage.recompute + stage.backward for stage in estimated.stages)
    return Balance(tuple(blocks.start for blocks in layout.stages[1:]), flops, layout.stages[-1].stop)
