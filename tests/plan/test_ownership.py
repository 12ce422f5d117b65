"""Parameter ownership: a model of seven billion parameters on 64 processes on the meta device, and small real models."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from sleeptrain.engine.build import EngineSpec, build_engine
from sleeptrain.model.counts import parameters
from sleeptrain.parallel.mesh import init_mesh
from sleeptrain.parallel.process import init_distributed
from sleeptrain.parallel.tensor import TensorParallelModel
from sleeptrain.plan.ownership import on_meta, parameter_ownership
from sleeptrain.recipe import load_recipe
from sleeptrain.recipe.shipped import configs_root
from sleeptrain.train.build_model import new_model
from tests.distributed import run
from tests.plan.plans import plan_of

MESH = ["mesh.data=4", "mesh.pipe=4", "mesh.tensor=4"]
SEVEN = ["data.sources=[{path: nowhere/text}]", "model.vocab=50257"]


def seven(*overrides):
    """The layout of the recipe hybrid-7b on 64 processes."""
    from sleeptrain.plan import resolve_data
    from sleeptrain.recipe import load_recipe
    from sleeptrain.train.layout import resolve_batch, resolve_layout

    resolved, data_layout = resolve_data(load_recipe("hybrid-7b", [*SEVEN, *MESH, *overrides]))
    return resolve_layout(resolved.value, data_layout.windows, resolve_batch(resolved.value, 64))


def count_by_hand(model, gated=True):
    """The number of parameters of a model with or without a gated loop, computed from its sizes."""
    width, a, g = model.width, model.attention, model.deltanet
    inner, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
    attention = width * ((3 if a.gate else 2) * inner + 2 * kv)
    attention += (2 * a.head_dim if a.qk_norm else 0) + (inner + 2 * kv if a.bias else 0)
    keys, values = g.key_heads * g.head_dim, g.value_heads * (g.value_dim or g.head_dim)
    convolved = values if g.generator else 2 * keys + values
    generator = g.generator * (width + g.conv * values) if g.generator else 0
    projections = width * (2 * keys + 3 * values + 2 * g.value_heads)
    deltanet = projections + g.conv * convolved + generator + 2 * g.value_heads + (g.value_dim or g.head_dim)
    block = 3 * width * model.mlp.hidden + (4 if model.norm == "sandwich" else 2) * width
    mixers = {"A": attention, "L": attention, "G": deltanet}
    ends = model.vocab * width * (1 if model.tie else 2) + (1 + gated) * width  # the final norm and the gate
    return sum(mixers[letter] + block for letter in model.pattern) + ends


def parts_of(layout):
    """Names and shapes of the parameters of all 16 (pipe, tensor) processes.

    Builds the layers of a real run on the meta device, in a fake process group of 64 processes.
    """
    from megatron.core import parallel_state

    found, job = {}, layout.job
    for rank in range(16 * 4):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=64)
        axes = init_mesh(job.mesh, rank, 64)
        if axes.data.rank == 0:
            with torch.device("meta"):
                model = TensorParallelModel(job.model, axes.tensor, gated=job.sleep.gated)
            part = layout.stages[axes.pipe.rank]
            model.keep_stage(part.start, part.stop)
            shapes = {name: (tuple(p.shape), model.tp_layout.dim(name)) for name, p in model.named_parameters()}
            found[axes.pipe.rank, axes.tensor.rank] = shapes
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
    return found


TIES = pytest.mark.parametrize("tie", [False, True])


@TIES
def test_shards_of_seven_billion_parameters_on_sixteen_processes_add_up_to_one_model(tie):
    """The sum over processes, without padding and without the copies of replicated parameters, is the size of one model."""
    layout = seven(f"model.tie={str(tie).lower()}")
    job = layout.job
    found, width, blocks = parameter_ownership(layout), job.model.width, job.model.pattern
    assert found.total == count_by_hand(job.model)
    norms = 2 * width * len(blocks) + 2 * width + 2 * 128 * blocks.count("A") + 128 * blocks.count("G")
    assert found.copies == 3 * norms + (50257 * width if tie else 0)
    padding = 4 * math.ceil(50257 / (4 * 64)) * 64 - 50257
    assert found.padding == 2 * padding * width  # embedding and head, or the embedding on two stages
    assert found.held == 4 * sum(share.elements for share in found.stages)
    assert found.held - found.copies - found.padding == found.total
    assert [share.blocks for share in found.stages] == [(0, 8), (8, 16), (16, 24), (24, 32)]


@pytest.mark.parametrize("name", sorted(path.stem for path in configs_root().glob("*.yaml")))
def test_parameters_of_every_recipe_are_counted_exactly(name):
    recipe = load_recipe(name, ["model.vocab=50257"]).value
    built = on_meta(recipe.model, recipe.sleep.gated)
    parts = parameters(built)
    assert (
        parts["total"] == count_by_hand(recipe.model, recipe.sleep.gated) == sum(p.numel() for p in built.parameters())
    )


@pytest.mark.slow
@TIES
def test_layers_built_for_sixteen_processes_have_the_planned_parameters(tie):
    layout = seven(f"model.tie={str(tie).lower()}")
    job = layout.job
    found, parts = parameter_ownership(layout), run(parts_of, 1, layout, timeout=300)[0]
    assert set(parts) == {(stage, rank) for stage in range(4) for rank in range(4)}
    for (stage, _), shapes in parts.items():
        assert {name: math.prod(shape) for name, (shape, _) in shapes.items()} == dict(found.stages[stage].sizes)
    assert sum(math.prod(shape) for shapes in parts.values() for shape, _ in shapes.values()) == found.held
    copies = sum(
        math.prod(shape) for (_, rank), shapes in parts.items() for shape, dim in shapes.values() if dim is None and rank > 0
    )  # fmt: skip
    assert found.copies == copies + (50257 * job.model.width if tie else 0)


def test_four_data_ranks_partition_the_optimizer_states():
    for share in parameter_ownership(seven()).stages:
        for which, n in share.partition(4).items():
            assert share.kinds[which] <= 4 * n < share.kinds[which] + 8
    plan = plan_of(*MESH, "train.batch=48", "mesh.group=6", "model.layers=GGGG", "model.deltanet.key_heads=4")
    weights = plan.parameters.stages[0].elements
    assert plan.memory[0].optimizer == pytest.approx(12 * weights / 4, rel=1e-3)


def test_weights_that_reach_into_a_partition():
    """By marking every element of the flat groups with its weight."""
    for share in parameter_ownership(seven()).stages:
        small = dataclasses.replace(
            share, groups={which: tuple(size // 997 + 1 for size in sizes) for which, sizes in share.groups.items()}
        )
        for data in (1, 2, 4):
            found = [0] * data
            for which, partition in small.partition(data).items():
                sizes = small.groups[which]
                marks = [weight for weight, size in enumerate(sizes) for _ in range(size)]
                for rank in range(data):
                    touched = set(marks[rank * partition : (rank + 1) * partition])
                    found[rank] += sum(sizes[weight] for weight in touched)
            assert small.touched(data) == max(found)
            assert (small.touched(data) == sum(small.kinds.values())) is (data == 1)


def sizes_on_this_process(layout):
    """This process's stage, its parameter sizes and its master weights in elements."""
    process, job = init_distributed(), layout.job
    axes = init_mesh(job.mesh, process.rank, process.world)
    model = new_model(layout, axes, 64, process.device)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    engine = build_engine(model, job.optim, EngineSpec(job.train.precision, job.mesh.zero, 1, 1, mpu=axes.mpu))
    masters = {g["name"]: sum(p.numel() for p in g["params"]) for g in engine.optimizer.param_groups}
    return axes.pipe.rank, sizes, masters


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["mesh.tensor=2"],
        ["mesh.pipe=2", "mesh.tensor=2", "model.tie=false"],
        ["mesh.data=2", "mesh.pipe=2", "optim.name=muon", "optim.adam_lr=0.1"],
    ],
    ids=str,
)
def test_real_processes_have_the_planned_parameters(overrides):
    """Four small blocks in real processes."""
    layout = plan_of(*overrides, "train.batch=8", "train.micro=null").layout
    planned, data = parameter_ownership(layout), layout.batch.data
    for stage, sizes, masters in run(sizes_on_this_process, layout.world, layout):
        assert sizes == dict(planned.stages[stage].sizes)
        assert masters == planned.stages[stage].partition(data)


def test_a_model_on_one_process_has_no_copies_and_no_padding():
    found = parameter_ownership(plan_of().layout)
    assert (found.copies, found.padding) == (0, 0) and found.held == found.total
    assert SimpleNamespace(**found.parts).head == 0  # tied
