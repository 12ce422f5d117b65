"""Memory of a whole training step of a small model in this process, measured and planned; and the grid of layouts to measure."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from sleeptrain.data.batch import Batch
from sleeptrain.engine.build import EngineSpec, build_engine
from sleeptrain.execute.activation_checkpoint import COMPILED_WRAPPERS
from sleeptrain.execute.p2p import Describe, P2PChannels
from sleeptrain.model.compile_blocks import compile_blocks
from sleeptrain.parallel.mesh import init_mesh
from sleeptrain.parallel.process import init_distributed
from sleeptrain.schedule import Edge
from sleeptrain.train.build_model import looped_elements, make_forward, new_model
from sleeptrain.train.step import StepContext, train_step
from tests.plan.plans import plan_of
from tests.storages import StorageCounter, graphs_counted, live_storages

LARGE = [
    "model.width=128", "model.mlp.hidden=256", "model.vocab=1024", "sleep.window=64", "train.batch=4", "mesh.group=0",
    "train.recompute=window",
]  # fmt: skip
"""Overrides of the small recipe whose steps are measured: sizes beside which those of single numbers do not count."""
LAYOUTS = {
    1: [f"mesh.zero={zero} train.batch=8" for zero in (1, 2, 3)],
    2: [
        *(f"mesh.data=2 mesh.zero={zero} train.batch=8" for zero in (1, 2, 3)),
        *(f"mesh.pipe=2 mesh.zero={zero} train.batch=6" for zero in (1, 2)),
        *(f"mesh.tensor=2 mesh.zero={zero} train.batch=8" for zero in (1, 2)),
    ],
    3: [f"mesh.data=3 mesh.zero={zero} train.batch=12" for zero in (1, 2, 3)],
    4: [
        *(f"mesh.data=4 mesh.zero={zero} train.batch=32" for zero in (1, 2, 3)),
        *(f"mesh.data=2 mesh.pipe=2 mesh.zero={zero} train.batch=12" for zero in (1, 2)),
        *(f"mesh.data=2 mesh.tensor=2 mesh.zero={zero} train.batch=8" for zero in (1, 2)),
        "mesh.pipe=4 train.batch=12", "mesh.pipe=2 mesh.tensor=2 train.batch=6",
    ],
}  # fmt: skip
"""Overrides by number of processes."""
POLICIES = ("none", "block", "selective", "window", "pass")


def grid(world: int) -> Iterator[str]:
    """The overrides of every case on `world` processes: layouts, precisions and compiled blocks, with one recompute policy each; on two
    processes blocks that are not compiled have every policy.

    On more than two processes, which compile at the same time, few are compiled.
    """
    for place, layout in enumerate(LAYOUTS[world]):
        for precision in ("fp32", "bf16"):
            for compiled in ("false", "true"):
                if compiled == "true" and (
                    "mesh.zero=3" in layout or (world > 2 and (precision, world) != ("bf16", 4))
                ):
                    continue
                if compiled == "true" and world > 2 and "mesh.zero=2" in layout:
                    continue
                policies = POLICIES[:3] if compiled == "true" else POLICIES
                if compiled == "true" and "mesh.tensor" in layout:
                    policies = POLICIES[:2]
                if world != 2 or compiled == "true":
                    policies = (policies[(place + (precision == "bf16")) % len(policies)],)
                for policy in policies:
                    yield f"{layout} train.precision={precision} train.compile={compiled} train.recompute={policy}"


@contextmanager
def sends_released() -> Iterator[None]:
    """Within, messages between stages are sent from copies that no StorageCounter counts.

    gloo says that a send is complete only to who waits for it, so that the tensors of all sends exist until the end of backward. NCCL
    says it when they are sent, and plans are for GPUs.
    """
    send = P2PChannels.send

    def copied(self: P2PChannels, edge: Edge, tensor: Tensor, describe: Describe) -> None:
        with _disable_current_modes():
            copy = tensor.detach().clone()
        send(self, edge, copy, describe)

    with mock.patch.object(P2PChannels, "send", copied):
        yield


def step_bytes(overrides: list[str]) -> tuple[float, float]:
    """Bytes of storages live between steps plus those of the peak of a step; measured and planned."""
    process, plan = init_distributed(), plan_of(*LARGE, *overrides)
    job, split = plan.job, plan.layout.batch
    axes = init_mesh(job.mesh, process.rank, process.world)
    tokens = torch.randint(0, 1024, (split.micro, plan.data_layout.manifest.length))
    batch = Batch(tokens, tokens.clone(), torch.full_like(tokens, -1), torch.arange(len(tokens)), {})
    batches = [batch] * (split.group * split.accumulation)
    before = live_storages()
    model = new_model(plan.layout, axes, 64, process.device)
    spec = EngineSpec(
        job.train.precision, job.mesh.zero, split.rows_per_backward, split.accumulation, mpu=axes.mpu,
        reused_elements=looped_elements(model, plan.schedule.program, job.sleep) if job.mesh.zero == 3 else 0,
    )  # fmt: skip
    engine = build_engine(model, job.optim, spec)
    if job.train.compiled:
        compile_blocks(model, wrap=COMPILED_WRAPPERS[job.train.compiled])
    forward = make_forward(plan.layout, axes, engine.grad_buffers, process.device)
    context = StepContext(engine, forward, plan.layout, axes, pad=1025)

    def step() -> None:
        train_step(context, batches, plan.schedule.program, 1.0)

    step()  # it allocates the optimizer's moments, and compiles
    between = sum(storage.nbytes() for address, storage in live_storages().items() if address not in before)
    with StorageCounter() as storages:
        step()
    return between + storages.peak, plan.memory[axes.pipe.rank].total


def step_bytes_by_case(cases: dict[str, list[str]]) -> dict[str, tuple[float, float]]:
    """`step_bytes` of the overrides of each of some cases."""
    found = {}
    with graphs_counted(), sends_released():
        for name, overrides in cases.items():
            torch.compiler.reset()
            found[name] = step_bytes(overrides)
    return found
