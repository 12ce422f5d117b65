"""A recipe on a mesh before it runs: who holds what, how much memory, how many FLOPs, how long stages wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sleeptrain.config import Resolved
from sleeptrain.model.counts import step_flops
from sleeptrain.parallel.config import Split
from sleeptrain.parallel.plan import proven
from sleeptrain.plan.costs import costs_of, graphs_of, retained
from sleeptrain.plan.layout import Layout
from sleeptrain.plan.memory import Memory, memory_of
from sleeptrain.plan.shares import Parameters, held
from sleeptrain.plan.traffic import Traffic, traffic_of
from sleeptrain.program import Balance, Costs, Price, Program, Timeline, Window, compile, place, price
from sleeptrain.recipe import Recipe, check_processes
from sleeptrain.train.job import Job
from sleeptrain.train.setup import split_batch
from sleeptrain.train.share import stages_of


@dataclass(frozen=True)
class Plan:
    """What a run will need. FLOPs, seconds and bytes are those of the largest number of passes."""

    job: Job
    layout: Layout
    world: int
    """Processes."""
    data: int
    """Of which so many share the rows of a batch."""
    split: Split
    speed: float | None
    """FLOPs a second that a process is taken to do; None: nothing is said of seconds."""
    parameters: Parameters
    timeline: Timeline
    """Of one group of micro-batches; a step repeats it."""
    costs: Costs
    price: Price
    memory: tuple[Memory, ...]
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
        return groups * sum(stage.again for stage in self.price.stages)

    @property
    def seconds(self) -> float | None:
        """Of a step's forward and backward, where the speed is known."""
        return None if self.speed is None else self.price.seconds * self.split.accumulation

    @property
    def balance(self) -> Balance:
        """Where the stack is cut, and what every stage computes in a step."""
        return balance_of(self.timeline, [s.forward + s.again + s.backward for s in self.price.stages])


def planned_world(recipe: Recipe, processes: int | None) -> int:
    """How many processes a plan is for: those asked for, or those that the mesh names; one on the data axis where it takes all."""
    mesh = recipe.mesh
    return processes or max(1, mesh.data) * mesh.pipe * mesh.tensor


def draw_up(resolved: Resolved[Recipe], layout: Layout, world: int, speed: float | None = None) -> Plan:
    """The plan of a complete recipe for `world` processes; nothing of its size is allocated.

    Raises UserError where batch or mesh do not fit the processes.
    """
    check_processes(resolved, world)
    job: Job = resolved.value
    data = world // (job.mesh.pipe * job.mesh.tensor)
    split = split_batch(job, data)
    timeline = proven(timeline_of(job, program_of(job, layout.windows), split.group))
    graphs = graphs_of(job, layout, split.micro)
    costs = costs_of(job, split.micro, graphs, speed)
    found, parameters = price(timeline, costs), held(job)
    stages = list(enumerate(zip(parameters.stages, found.stages, strict=True)))
    return Plan(
        job, layout, world, data, split, speed, parameters, timeline, costs, found,
        tuple(memory_of(job, share, data, split.accumulation, at, graphs) for _, (share, at) in stages),
        tuple(
            traffic_of(job, s, share, data, split.accumulation, timeline, costs, found) for s, (share, _) in stages
        ),
        step_flops(job.model, timeline.program, job.sleep) * job.train.batch,
    )  # fmt: skip


def program_of(job: Job, windows: Sequence[Window]) -> Program:
    """The program of a step with the largest number of passes."""
    return compile(job.sleep, windows, len(job.model.pattern))


def timeline_of(job: Job, program: Program, group: int) -> Timeline:
    """What the stages of a recipe do over one group of micro-batches."""
    return place(program, stages_of(job), group, retained(job), job.model.tie)


def stages_balance(job: Job, windows: Sequence[Window], split: Split) -> Balance:
    """What every stage of a complete job computes in one group of micro-batches."""
    timeline = timeline_of(job, program_of(job, windows), split.group)
    stages = price(timeline, costs_of(job, split.micro)).stages
    return balance_of(timeline, [s.forward + s.again + s.backward for s in stages])


def balance_of(timeline: Timeline, flops: Sequence[float]) -> Balance:
    """The stages of a timeline with what they compute."""
    slices = [stage.slice for stage in timeline.stages]
    return Balance(tuple(part.start for part in slices[1:]), tuple(flops), slices[-1].stop)
