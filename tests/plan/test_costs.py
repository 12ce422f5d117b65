"""Costs of a recipe: FLOPs against the trainer's count, sizes against hand-counted values, and their shards."""

import pytest

from sleeptrain.model.counts import step_flops
from sleeptrain.model.work import work_of_full_row
from sleeptrain.plan.costs import costs_of
from sleeptrain.schedule import estimate
from sleeptrain.train.throughput import recomputed_flops
from tests.plan.plans import layout_of, plan_of

PROGRAMS = {
    "every": [],
    "sliding": ["sleep.evict.mode=sliding"],
    "a short reach": ["sleep.evict.mode=sliding", "model.attention.window=5"],
    "local blocks": ["model.layers=GLGA", "model.attention.local=5"],
    "dynamic convolution": ["model.deltanet.generator=4", "model.deltanet.value_dim=12"],
    "range": ["sleep.loop.layers=[1, 3]"],
    "untied": ["model.tie=false"],
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_flops_match_the_count_of_the_trainer(name):
    """Forward once and backward twice, for all stages and rows; recompute does not count."""
    tensor = [["mesh.tensor=2", "model.vocab=384"]] if name != "dynamic convolution" else []
    for mesh in (["train.recompute=window"], ["mesh.pipe=2"], *tensor):
        plan = plan_of(*PROGRAMS[name], *mesh)
        groups = plan.layout.batch.accumulation * plan.layout.batch.data * plan.job.mesh.tensor
        by_stage = groups * sum(stage.forward + stage.backward for stage in plan.estimate.stages)
        assert by_stage == pytest.approx(plan.flops, rel=1e-12), (name, mesh)
        per_row = step_flops(plan.job.model, plan.layout.program(), plan.job.sleep)
        assert plan.flops == per_row * plan.job.train.batch


@pytest.mark.parametrize("policy", ["none", "selective", "block", "pass", "window"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_recompute_matches_the_count_of_the_trainer(name, policy):
    for mesh in ([], ["mesh.pipe=2"]):
        plan = plan_of(*PROGRAMS[name], *mesh, f"train.recompute={policy}")
        program, model = plan.layout.program(), plan.job.model
        work = work_of_full_row(program, model.reaches) * plan.job.train.batch
        assert recomputed_flops(plan.layout, program, work) == pytest.approx(plan.recompute_flops), mesh
        assert (plan.recompute_flops > 0) == (policy != "none")


def test_sizes_match_hand_counted_values():
    sizes = costs_of(layout_of("sleep.evict.mode=sliding", "train.micro=3", "train.batch=6")).sizes
    assert sizes.h == 32 * 4 and sizes.rows == 3
    assert sizes.fast == (4 * 8 * 8 * 4, 0, 4 * 8 * 8 * 4, 0)  # value heads, keys, values, bytes
    assert sizes.conv == (3 * 2 * (2 * 8 + 2 * 8) * 4, 0) * 2  # taps, key heads, channels
    assert sizes.kv == (0, 2 * 2 * 8 * 4 + 1) * 2  # keys and values, and the mask of valid entries


def test_bf16_halves_all_but_fast_weights_and_tensor_parallelism_shards_all_but_features():
    fp32, bf16, tensor, sequence = (
        costs_of(layout_of(*overrides)).sizes
        for overrides in ([], ["train.precision=bf16"], ["mesh.tensor=2"], ["mesh.tensor=2", "mesh.sequence=true"])
    )
    assert (bf16.h, bf16.conv) == (fp32.h / 2, tuple(c / 2 for c in fp32.conv)) and bf16.fast == fp32.fast
    assert tensor.fast == tuple(s / 2 for s in fp32.fast) and tensor.conv == tuple(c / 2 for c in fp32.conv)
    assert tensor.h == fp32.h and sequence.h == fp32.h / 2


def test_sequence_parallelism_saves_less_activation_memory():
    plans = [plan_of("mesh.tensor=2", "train.recompute=none", f"mesh.sequence={on}") for on in ("false", "true")]
    tensor, sequence = (plan.memory[0].saved for plan in plans)
    assert sequence["h"] == tensor["h"] / 2 and sequence["S"] == tensor["S"]
    assert 0.5 < sequence["body"] / tensor["body"] < 0.9


def test_a_tied_matrix_is_reduced_once_in_float32():
    for changes in ([], ["train.precision=bf16"]):
        assert plan_of("mesh.pipe=2", *changes).costs.tied_bytes == 4 * 258 * 32
    untied = plan_of("mesh.pipe=2", "model.tie=false").costs.tied_bytes
    assert costs_of(layout_of()).tied_bytes == 0 == untied


def test_speed_converts_flops_to_seconds():
    plan = plan_of("mesh.pipe=2")
    costs = costs_of(plan.layout, speed=1e6)
    assert estimate(plan.schedule, costs).seconds == pytest.approx(plan.estimate.seconds / 1e6)
    assert plan.seconds is None
