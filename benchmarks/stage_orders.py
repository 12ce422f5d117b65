"""What one process of a layout can be told by `parallel.py`: make a step, weigh one, or write down what it did and when."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from steps import batch
from teams import Orders

from sleeptrain.engine.build import EngineSpec, build_engine
from sleeptrain.engine.engine import Engine
from sleeptrain.execute.autograd import FinalizeGrads, run_with_autograd
from sleeptrain.execute.executor import StageExecutor
from sleeptrain.execute.gradients import GradAccumulator
from sleeptrain.execute.p2p import P2PChannels
from sleeptrain.execute.segments import MicroBatch
from sleeptrain.execute.stage_plan import StagePlan as StagePlan
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.sleep import ProgramOutput
from sleeptrain.parallel.mesh import MeshAxes, init_mesh
from sleeptrain.parallel.process import init_distributed
from sleeptrain.plan import Plan
from sleeptrain.program import Program
from sleeptrain.schedule import ScheduleAction
from sleeptrain.train.build_model import new_model
from sleeptrain.train.step import train_step

Watching = Callable[[StageExecutor, str, Any], None]


def orders(plans: dict[str, Plan]) -> Orders:
    """Join the group and build this process's share; `plans` by `train.recompute`."""
    process = _Process.made(plans)
    return {"step": process.step, "weigh": process.weigh, "trace": process.trace}


@dataclass
class _Process:
    """One process: one model and optimizer, whatever the policy."""

    plans: dict[str, Plan]
    engine: Engine
    axes: MeshAxes
    edges: P2PChannels | None
    finalize_grads: FinalizeGrads | None
    batches: list[Any]
    stages: dict[str, StagePlan] = field(default_factory=dict)

    @classmethod
    def made(cls, plans: dict[str, Plan]) -> _Process:
        """Model, engine and the ways between stages."""
        process, plan = init_distributed(), next(iter(plans.values()))
        job, split = plan.job, plan.split
        axes = init_mesh(job.mesh, process.rank, process.world)
        model, finalize_grads = new_model(job, axes, job.model.deltanet.horizon or 1, process.device)
        spec = EngineSpec(
            job.train.precision, job.mesh.zero, split.micro * split.group, split.accumulation, mpu=axes.mpu
        )
        engine = build_engine(model, job.optim, spec)
        edges = None
        if axes.pipe.size > 1:
            edges = P2PChannels(axes.pipes)
            for each in plans.values():
                edges.open(each.schedule.channels, process.device)
        pieces = split.group * split.accumulation
        rows = [batch(plan.layout.windows, split.micro, plan.layout.manifest.vocab) for _ in range(pieces)]
        stages = {policy: StagePlan(each.schedule, axes.pipe.rank) for policy, each in plans.items()}
        made = cls(plans, engine, axes, edges, finalize_grads, rows, stages)
        for policy in plans:  # to warm up
            made.step(policy)
        return made

    def step(self, policy: str, watching: Watching | None = None) -> float:
        """Seconds of a step."""
        plan = self.plans[policy]
        job = plan.job

        def forward(model: LanguageModel, group: Sequence[MicroBatch], program: Program) -> list[ProgramOutput]:
            stage = StageExecutor(
                model, group, self.stages[policy], self.edges, GradAccumulator(getattr(torch, job.optim.sum_dtype))
            )
            if watching:
                stage.observer = stage.store.observer = lambda what, subject: watching(stage, what, subject)
            return run_with_autograd(stage, self.finalize_grads)

        if self.engine.process.world > 1:
            dist.barrier()
        began = time.perf_counter()
        train_step(
            self.engine, self.batches, plan.schedule.program, job.sleep, plan.layout.windows, plan.layout.manifest.pad,
            forward, plan.split.group, self.axes, 1e-6,
        )  # fmt: skip
        _wait()
        return time.perf_counter() - began

    def weigh(self, policy: str) -> dict[str, Any]:
        """What waits for backward when it could begin, and the largest sum of what is held, by our accounting; and the process's
        peak, in a step of its own."""
        _forget_peak()
        self.step(policy)
        resident, by = _peak()
        found = {"kept": 0, "most": 0}

        def heavier(stage: StageExecutor, what: str, subject: Any) -> None:
            # When backward is through a graph, there is nothing left of it to be weighed.
            if what == "begin" or (what == "end" and subject.kind in ("FWD", "RECOMPUTE", "RECV")):
                held = sum(stage.bytes().values())
                found["most"] = max(found["most"], held)
                if what == "begin" and subject == stage.stage.backward[0]:
                    found["kept"] = max(found["kept"], held)

        self.step(policy, heavier)
        return found | {"resident": resident, "by": by, "stage": self.axes.pipe.rank}

    def trace(self, policy: str) -> dict[str, Any]:
        """What this process's stage did in the first backward of a step and its forward, in order; how long it waited."""
        events: list[tuple[str, str, int, int, Any]] = []
        first: list[StageExecutor] = []
        clock = {"waited": 0.0, "begun": 0.0, "from": 0.0, "to": 0.0}

        def note(stage: StageExecutor, what: str, subject: Any) -> None:
            now = time.perf_counter()
            if not first:
                first.append(stage)
                clock["from"] = now
            if stage is not first[0]:
                return
            if isinstance(subject, ScheduleAction):
                edge = None if subject.edge is None else tuple(subject.edge)
                events.append((what, subject.kind, subject.op, subject.micro, edge))
                if what == "begin":
                    clock["begun"] = now
                if what == "end" and subject.kind == "REDUCE":
                    clock["waited"] += now - clock["begun"]
            else:
                events.append((what, subject.kind, subject.op, subject.micro, (subject.stage, self.axes.pipe.rank, "")))
                clock["waited"] += now - clock["begun"]
            clock["to"] = now

        self.step(policy, note)
        return {
            "stage": self.axes.pipe.rank, "events": events, "waited": clock["waited"], "seconds": clock["to"] - clock["from"],
        }  # fmt: skip


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _forget_peak() -> None:
    """Begin to count the peak anew."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):  # where it is not allowed, the peak is that of all steps so far
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> tuple[int, str]:
    """Bytes, and who counted them."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated(), "allocated"
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024, "resident"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "resident"
