"""A recipe on a mesh before it runs: who holds what, how much memory, how many FLOPs, how long stages wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sleeptrain.config import Resolved
from sleeptrain.model.counts import step_flops
from sleeptrain.parallel.config import BatchLayout
from sleeptrain.plan.costs import activations_of, costs_of, recompute_policy
from sleeptrain.plan.data_layout import DataLayout
from sleeptrain.plan.memory import ProcessMemory, memory_of
from sleeptrain.plan.ownership import Parameters, parameter_ownership
from sleeptrain.plan.traffic import Traffic, traffic_of
from sleeptrain.program import Program, Window, compile
from sleeptrain.recipe.recipe import Recipe, check_processes
from sleeptrain.schedule import Balance, Costs, Estimate, Schedule, build_schedule, checked, estimate
from sleeptrain.train.build_model import stages_of
from sleeptrain.train.job import Job
from sleeptrain.train.setup import split_batch


@dataclass(frozen=True)
class Plan:
    """What a run will need. FLOPs, seconds and bytes are those of the largest number of passes."""

    job: Job
    layout: DataLayout
    world: int
    """Processes."""
    data: int
    """Of which so many share the rows of a batch."""
    split: BatchLayout
    speed: float | None
    """FLOPs a second that a process is taken to do; None: nothing is said of seconds."""
    parameters: Parameters
    schedule: Schedule
    """Of one group of micro-batches; a step repeats it."""
    costs: Costs
    estimate: Estimate
    memory: tuple[ProcessMemory, ...]
    """Of a process of each stage."""
    traffic: tuple[Traffic, ...]
    """Of a process of each stage, in a step."""
    flops: float
    """Model FLOPs of a step over all processes: passes count, recomputing does not."""

    @property
    def tokens(self) -> int:
        """Of a step, padding included."""
        return self.job.train.batch * self.layout.manifest.length

    @property
    def again(self) -> float:
        """FLOPs of a step that are done anew since their results were not kept, over all processes."""
        groups = self.split.accumulation * self.data * self.job.mesh.tensor
        return groups * sum(stage.recompute for stage in self.estimate.stages)

    @property
    def seconds(self) -> float | None:
        """Of a step's forward and backward, where the speed is known."""
        return None if self.speed is None else self.estimate.seconds * self.split.accumulation

    @property
    def balance(self) -> Balance:
        """Where the stack is cut, and what every stage computes in a step."""
        return balance_of(self.schedule, [s.forward + s.recompute + s.backward for s in self.estimate.stages])


def planned_world(recipe: Recipe, processes: int | None) -> int:
    """How many processes a plan is for: those asked for, or those that the mesh names; one on the data axis where it takes all."""
    mesh = recipe.mesh
    return processes or max(1, mesh.data) * mesh.pipe * mesh.tensor


def make_plan(resolved: Resolved[Recipe], layout: DataLayout, world: int, speed: float | None = None) -> Plan:
    """The plan of a complete recipe for `world` processes; nothing of its size is allocated.

    Raises UserError where batch or mesh do not fit the processes.
    """
    check_processes(resolved, world)
    job: Job = resolved.value
    data = world // (job.mesh.pipe * job.mesh.tensor)
    split = split_batch(job, data)
    schedule = checked(schedule_of(job, program_of(job, layout.windows), split.group))
    graphs = activations_of(job, layout, split.micro)
    costs = costs_of(job, split.micro, graphs, speed)
    found, parameters = estimate(schedule, costs), parameter_ownership(job)
    stages = list(enumerate(zip(parameters.stages, found.stages, strict=True)))
    return Plan(
        job, layout, world, data, split, speed, parameters, schedule, costs, found,
        tuple(memory_of(job, share, data, split.accumulation, at, graphs) for _, (share, at) in stages),
        tuple(
            traffic_of(job, s, share, data, split.accumulation, schedule, costs, found) for s, (share, _) in stages
        ),
        step_flops(job.model, schedule.program, job.sleep) * job.train.batch,
    )  # fmt: skip


def program_of(job: Job, windows: Sequence[Window]) -> Program:
    """The program of a step with the largest number of passes."""
    return compile(job.sleep, windows, len(job.model.pattern))


def schedule_of(job: Job, program: Program, group: int) -> Schedule:
    """What the stages of a recipe do over one group of micro-batches."""
    return build_schedule(program, stages_of(job), group, recompute_policy(job), job.model.tie)


def stage_balance(job: Job, windows: Sequence[Window], split: BatchLayout) -> Balance:
    """What every stage of a complete job computes in one group of micro-batches."""
    schedule = schedule_of(job, program_of(job, windows), split.group)
    stages = estimate(schedule, costs_of(job, split.micro)).stages
    return balance_of(schedule, [s.forward + s.recompute + s.backward for s in stages])


def balance_of(schedule: Schedule, flops: Sequence[float]) -> Balance:
    """The stages of a schedule with what they compute."""
    slices = [stage.blocks for stage in schedule.stages]
    return Balance(tuple(part.start for part in slices[1:]), tuple(flops), slices[-1].stop)
