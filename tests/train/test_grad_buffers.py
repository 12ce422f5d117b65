"""One float32 gradient in bf16 at ZeRO 1: the executor adds to the engine's buffers what it would otherwise return."""

import pytest
import torch

from sleeptrain.data.batch import Batch
from sleeptrain.engine.build import EngineSpec, build_engine
from sleeptrain.parallel.mesh import init_mesh
from sleeptrain.parallel.process import init_distributed
from sleeptrain.train.build_model import make_forward, new_model
from sleeptrain.train.step import StepContext, to_micro_batch
from tests.distributed import run
from tests.plan.plans import plan_of

ACCUMULATION = 4
"""A power of two, by which a loss is divided exactly."""
SMALL = ["train.precision=bf16", f"train.batch={4 * ACCUMULATION}"]
LAYOUTS = {
    1: {"one process": [], "CPU offload": ["train.recompute=pass", "train.offload=true"]},
    2: {
        "tensor": ["mesh.tensor=2"],
        "sequence": ["mesh.tensor=2", "mesh.sequence=true"],
        "tied embedding on two stages": ["mesh.pipe=2", "model.tie=true"],
    },
}


def gradients(overrides):
    """Of two backwards, for every parameter: what the buffers got, and what the executor returns where there are no buffers.

    After these the norm of what the buffers hold, of a parameter on this process, and that of the engine's step.
    """
    process, plan = init_distributed(), plan_of(*SMALL, *overrides)
    job, batch = plan.job, plan.layout.batch
    assert batch.accumulation == ACCUMULATION
    axes = init_mesh(job.mesh, process.rank, process.world)
    model = new_model(plan.layout, axes, 64, process.device)
    engine = build_engine(
        model, job.optim, EngineSpec("bf16", job.mesh.zero, batch.rows_per_backward, batch.accumulation, mpu=axes.mpu)
    )
    buffered, plain = (
        make_forward(plan.layout, axes, buffers, torch.device("cpu")) for buffers in (engine.grad_buffers, {})
    )
    context = StepContext(engine, buffered, plan.layout, axes, pad=1000)
    buffers = {name: engine.grad_buffers[weight] for name, weight in model.named_parameters()}
    generator, found = torch.Generator().manual_seed(0), []

    def loss(forward, group):
        outputs = forward(model, [to_micro_batch(each, context, 1.0) for each in group], plan.schedule.program)
        return torch.stack([output.nll.sum() for output in outputs]).sum()

    for k in range(ACCUMULATION):
        tokens = torch.randint(
            0, 256, (batch.group, batch.micro, plan.data_layout.manifest.length), generator=generator
        )
        group = [Batch(t, t.clone(), torch.full_like(t, -1), torch.arange(len(t)), {}) for t in tokens]
        before = {name: buffer.clone() for name, buffer in buffers.items()}
        engine.backward(loss(buffered, group))
        assert all(weight.grad is None for weight in model.parameters())
        if k < 2:
            (loss(plain, group) / ACCUMULATION).backward()
            found.append({name: (buffers[name] - before[name], w.grad) for name, w in model.named_parameters()})
            model.zero_grad(set_to_none=True)
    norm = torch.cat([buffer.flatten() for buffer in buffers.values()]).norm().item()
    return found, norm, engine.step().grad_norm


def gradients_by_layout(layouts):
    return {name: gradients(overrides) for name, overrides in layouts.items()}


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_buffers_get_what_the_executor_would_return_without_its_rounding(world):
    for by_layout in run(gradients_by_layout, world, LAYOUTS[world], timeout=300):
        for layout, ((first, second), norm, step_norm) in by_layout.items():
            for name, (buffered, returned) in first.items():
                assert buffered.dtype == torch.float32 and returned.dtype == torch.bfloat16
                assert torch.equal(buffered.bfloat16(), returned), (layout, name)
            unrounded = torch.cat([(b != b.bfloat16()).flatten() for b, _ in first.values()])
            assert unrounded.float().mean() > 0.5, layout
            for name, (buffered, returned) in second.items():
                # To the rounding of one bf16 number: a gradient that is completed twice would be off by its own size.
                torch.testing.assert_close(
                    buffered, returned.float(), rtol=5e-3, atol=1e-6 * norm, msg=f"{layout} {name}"
                )
            if world == 1:
                assert step_norm == pytest.approx(norm, rel=1e-5)
