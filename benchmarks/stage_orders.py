"""One benchmark process of a layout: runs a training step, measures its memory, or traces the actions of its stage."""

from __future__ import annotations

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
from sleeptrain.execute.autograd import run_with_autograd
from sleeptrain.execute.executor import StageExecutor
from sleeptrain.execute.gradients import GradAccumulator
from sleeptrain.execute.p2p import P2PChannels
from sleeptrain.execute.stage_plan import StagePlan
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.model.sleep import ProgramOutput
from sleeptrain.parallel.mesh import MeshAxes, init_mesh
from sleeptrain.parallel.process import init_distributed
from sleeptrain.plan import Plan
from sleeptrain.program import Program
from sleeptrain.schedule import ScheduleAction
from sleeptrain.train.build_model import new_model
from sleeptrain.train.step import StepContext, train_step
from sleeptrain.train.throughput import peak_memory

StepObserver = Callable[[StageExecutor, str, Any], None]
"""Called with the executor, the event (begin, end or arrived), and the action or value."""


def orders(plans: dict[str, Plan]) -> Orders:
    """Joins the process group and builds this process's model and engine; `plans` by `train.recompute`."""
    process = _BenchmarkProcess.create(plans)
    return {"step": process.step, "measure_memory": process.measure_memory, "trace": process.trace}


@dataclass
class _BenchmarkProcess:
    """One process with one model and optimizer, shared by all recompute policies."""

    plans: dict[str, Plan]
    engine: Engine
    axes: MeshAxes
    edges: P2PChannels | None
    batches: list[Any]
    stages: dict[str, StagePlan] = field(default_factory=dict)

    @classmethod
    def create(cls, plans: dict[str, Plan]) -> _BenchmarkProcess:
        """Builds model, engine and P2P channels, and runs one step of every policy to warm up."""
        process, plan = init_distributed(), next(iter(plans.values()))
        job, split = plan.job, plan.layout.batch
        axes = init_mesh(job.mesh, process.rank, process.world)
        model = new_model(plan.layout, axes, job.model.deltanet.horizon or 1, process.device)
        spec = EngineSpec(job.train.precision, job.mesh.zero, split.rows_per_backward, split.accumulation, mpu=axes.mpu)
        engine = build_engine(model, job.optim, spec)
        edges = None
        if axes.pipe.size > 1:
            edges = P2PChannels(axes.pipes)
            for each in plans.values():
                edges.open(each.schedule.channels, process.device)
        windows, vocab = plan.data_layout.windows, plan.data_layout.manifest.vocab
        batches = [batch(windows, split.micro, vocab) for _ in range(split.micro_batches)]
        stages = {policy: StagePlan(each.schedule, axes.pipe.rank) for policy, each in plans.items()}
        created = cls(plans, engine, axes, edges, batches, stages)
        for policy in plans:
            created.step(policy)
        return created

    def step(self, policy: str, observer: StepObserver | None = None) -> float:
        """Runs one step and returns its seconds."""
        plan = self.plans[policy]

        def forward(model: LanguageModel, group: Sequence[MicroBatch], program: Program) -> list[ProgramOutput]:
            grads = GradAccumulator(self.engine.grad_buffers, model.partial_grads())
            stage = StageExecutor(model, group, self.stages[policy], self.edges, grads)
            if observer:
                stage.observer = stage.store.observer = lambda event, subject: observer(stage, event, subject)
            return run_with_autograd(stage)

        if self.engine.process.world > 1:
            dist.barrier()
        began = time.perf_counter()
        train_step(
            StepContext(self.engine, forward, plan.layout, self.axes, plan.data_layout.manifest.pad),
            self.batches, plan.schedule.program, 1e-6,
        )  # fmt: skip
        _synchronize()
        return time.perf_counter() - began

    def measure_memory(self, policy: str) -> dict[str, Any]:
        """Bytes held before backward and at peak by the executor's accounting, and the peak memory of the process.

        The peak of the process is measured in a separate step, without the accounting.
        """
        _reset_peak()
        self.step(policy)
        resident, source = peak_memory(), "allocated" if torch.cuda.is_available() else "resident"
        measured = {"kept": 0, "peak": 0}

        def observe(stage: StageExecutor, event: str, subject: Any) -> None:
            # The end of BWD is skipped: its graph is partly released, so the accounting cannot measure it.
            if event == "begin" or (event == "end" and subject.kind in ("FWD", "RECOMPUTE", "RECV")):
                held = sum(stage.bytes().values())
                measured["peak"] = max(measured["peak"], held)
                if event == "begin" and subject == stage.stage.backward[0]:
                    measured["kept"] = max(measured["kept"], held)

        self.step(policy, observe)
        return measured | {"resident": resident, "by": source, "stage": self.axes.pipe.rank}

    def trace(self, policy: str) -> dict[str, Any]:
        """Events of this stage in the first forward and backward of a step, in order, and the seconds it waited for messages."""
        events: list[tuple[str, str, int, int, Any]] = []
        first: list[StageExecutor] = []
        clock = {"waited": 0.0, "action_begin": 0.0, "begin": 0.0, "end": 0.0}

        def record(stage: StageExecutor, event: str, subject: Any) -> None:
            now = time.perf_counter()
            if not first:
                first.append(stage)
                clock["begin"] = now
            if stage is not first[0]:
                return
            if isinstance(subject, ScheduleAction):
                edge = None if subject.edge is None else tuple(subject.edge)
                events.append((event, subject.kind, subject.op, subject.micro, edge))
                if event == "begin":
                    clock["action_begin"] = now
                if event == "end" and subject.kind == "REDUCE":
                    clock["waited"] += now - clock["action_begin"]
            else:
                events.append(
                    (event, subject.kind, subject.op, subject.micro, (subject.stage, self.axes.pipe.rank, ""))
                )
                clock["waited"] += now - clock["action_begin"]
            clock["end"] = now

        self.step(policy, record)
        return {
            "stage": self.axes.pipe.rank, "events": events, "waited": clock["waited"], "seconds": clock["end"] - clock["begin"],
        }  # fmt: skip


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _reset_peak() -> None:
    """Resets the peak memory of the process."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):  # without permission, the peak is that of all steps so far
        Path("/proc/self/clear_refs").write_text("5")
