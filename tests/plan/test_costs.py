"""What the builder makes of a recipe: FLOPs that agree with the trainer's count, sizes counted by hand, shares of both."""

import pytest

from sleeptrain.model.counts import step_flops
from sleeptrain.plan.costs import costs_of
from sleeptrain.schedule import estimate
from tests.plan.plans import layout_of, plan_of

PROGRAMS = {
    "every": [],
    "sliding": ["sleep.evict.mode=sliding"],
    "a short reach": ["sleep.evict.mode=sliding", "model.attention.window=5"],
    "range": ["sleep.loop.layers=[1, 3]"],
    "untied": ["model.tie=false"],
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_flops_are_those_that_the_trainer_counts(name):
    """Forward once and backward twice, of every stage, over all rows; what is computed again does not count."""
    for mesh in (["train.recompute=window"], ["mesh.pipe=2"], ["mesh.tensor=2", "model.vocab=384"]):
        plan = plan_of(*PROGRAMS[name], *mesh)
        groups = plan.layout.batch.accumulation * plan.layout.batch.data * plan.job.mesh.tensor
        counted = groups * sum(stage.forward + stage.backward for stage in plan.estimate.stages)
        assert counted == pytest.approx(plan.flops, rel=1e-12), (name, mesh)
        one = step_flops(plan.job.model, plan.layout.program(), plan.job.sleep)
        assert plan.flops == one * plan.job.train.batch


def test_sizes_by_hand():
    sizes = costs_of(layout_of("sleep.evict.mode=sliding", "train.micro=3", "train.batch=6")).sizes
    assert sizes.h == 32 * 4 and sizes.rows == 3
    assert sizes.fast == (4 * 8 * 8 * 4, 0, 4 * 8 * 8 * 4, 0)  # value heads, keys, values, bytes
    assert sizes.conv == (3 * 2 * (2 * 8 + 2 * 8) * 4, 0) * 2  # taps, key heads, channels
    assert sizes.kv == (0, 2 * 2 * 8 * 4 + 1) * 2  # keys and values, and whether they are real


def test_bf16_halves_all_but_fast_weights_and_tensor_processes_share_all_but_features():
    wide, short, shared, spread = (
        costs_of(layout_of(*overrides)).sizes
        for overrides in ([], ["train.precision=bf16"], ["mesh.tensor=2"], ["mesh.tensor=2", "mesh.sequence=true"])
    )
    assert (short.h, short.conv) == (wide.h / 2, tuple(c / 2 for c in wide.conv)) and short.fast == wide.fast
    assert shared.fast == tuple(s / 2 for s in wide.fast) and shared.conv == tuple(c / 2 for c in wide.conv)
    assert shared.h == wide.h and spread.h == wide.h / 2


def test_sharing_tokens_between_layers_keeps_less():
    plans = [plan_of("mesh.tensor=2", "train.recompute=none", f"mesh.sequence={on}") for on in ("false", "true")]
    whole, spread = (plan.memory[0].saved for plan in plans)
    assert spread["h"] == whole["h"] / 2 and spread["S"] == whole["S"] and 0.5 < spread["body"] / whole["body"] < 0.9


def test_a_tied_matrix_travels_once_in_the_type_of_the_sums():
    for changes, size in (
        ([], 4),
        (["train.precision=bf16"], 4),
        (["train.precision=bf16", "optim.sum_dtype=bfloat16"], 2),
    ):
        plan = plan_of("mesh.pipe=2", *changes)
        assert plan.costs.tied_bytes == size * 258 * 32
    tied_later = plan_of("mesh.pipe=2", "model.tie=false").costs.tied_bytes
    assert costs_of(layout_of()).tied_bytes == 0 == tied_later


def test_speed_makes_seconds_of_flops():
    plain, quick = plan_of("mesh.pipe=2"), plan_of("mesh.pipe=2")
    costs = costs_of(quick.layout, speed=1e6)
    assert estimate(plain.schedule, costs).seconds == pytest.approx(plain.estimate.seconds / 1e6)
    assert plain.seconds is None
