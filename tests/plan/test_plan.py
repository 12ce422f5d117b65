"""The whole plan: number of processes, traffic against hand-counted values, bubble, balance, and layouts that do not fit."""

import pytest

from sleeptrain.errors import UserError
from sleeptrain.plan import make_plan, planned_world, resolve_data, stage_balance, text, to_json
from sleeptrain.plan.show import size
from sleeptrain.recipe import check_batch, load_recipe
from sleeptrain.train.layout import resolve_layout
from tests.plan.plans import plan_of, resolved_of
from tests.sources import ROOT

WIDTH, ROWS, LENGTH = 32, 4, 16
PASSES = 3 + 3 + 1
"""Passes over three windows; all but the last sleep."""


def test_the_mesh_determines_the_number_of_processes_unless_it_is_given():
    assert (
        plan_of().layout.world == 1
        and plan_of("mesh.pipe=2").layout.world == 2
        and plan_of("mesh.data=2", "mesh.tensor=2", "train.batch=8").layout.world == 4
    )
    eight = plan_of("mesh.pipe=2", "train.batch=16", world=8)
    assert (eight.layout.world, eight.layout.batch.data, eight.layout.batch.accumulation) == (8, 4, 1)
    assert planned_world(eight.job, None) == 2  # mesh.data = 0 plans for a data axis of one
    with pytest.raises(UserError, match=r"mesh\.data = 2 \(command line\): 3 processes were started; start 2"):
        plan_of("mesh.data=2", "train.batch=8", world=3)
    with pytest.raises(UserError, match=r"train\.batch = 4 .*does not divide over 3 processes"):
        plan_of(world=3)
    with pytest.raises(UserError, match=r"the 1 micro-batches of each of 1 processes"):
        plan_of("train.batch=2")


def test_traffic_over_the_data_axis_matches_hand_counted_values():
    def sent(*overrides):
        plan = plan_of("mesh.data=2", "train.batch=16", *overrides)
        return plan.traffic[0]["data"], plan.parameters.total

    for changes, sums, weight in (
        ([], 1, 4), (["mesh.zero=2"], 2, 4), (["train.precision=bf16"], 1, 2), (["train.precision=bf16", "mesh.zero=2"], 2, 2),
    ):  # fmt: skip
        found, n = sent(*changes)
        # In a ring of two, a reduction sends half of its input twice and an all-gather sends half of its output once.
        assert found == n * 4 * sums + n * weight / 2
    assert plan_of().traffic[0]["data"] == 0


def test_traffic_between_stages_matches_hand_counted_values():
    plan = plan_of("mesh.pipe=2", "train.batch=8", "train.recompute=none", "model.tie=false")
    h = 2 * LENGTH * WIDTH * 4  # two rows of a window
    backwards, micro = plan.layout.batch.accumulation, plan.layout.batch.group
    assert (backwards, micro) == (2, 2)
    wraps = 4  # passes that read the features of an earlier pass
    assert [t["pipe"] for t in plan.traffic] == [backwards * micro * h * (PASSES + wraps)] * 2


def test_traffic_over_the_tensor_axis_matches_hand_counted_values():
    """Two all-reduces per block and pass in forward and in backward, one per embedding, one per backward of the head."""
    plan = plan_of("mesh.tensor=2", "train.recompute=none")
    h = ROWS * LENGTH * WIDTH * 4
    assert plan.traffic[0]["tensor"] == h * (2 * 4 * PASSES * 2 + 3 + 3)
    recompute = plan_of("mesh.tensor=2", "train.recompute=pass")
    assert recompute.traffic[0]["tensor"] == plan.traffic[0]["tensor"] + h * (2 * 4 * PASSES + 3)


def test_offload_traffic_counts_both_directions():
    plan = plan_of("train.offload=true", "train.recompute=pass", "train.batch=8")
    assert plan.traffic[0]["host"] == 2 * plan.memory[0].host * plan.layout.batch.accumulation > 0
    assert plan.memory[0].total < plan_of("train.recompute=pass", "train.batch=8").memory[0].total


def test_seven_billion_parameters_train_on_eight_gpus_of_80_gib():
    """`hybrid-7b` with AdamW at ZeRO 1: one gradient of 4 bytes a parameter, and a process far below 72 GiB, 90 % of a GPU."""
    words = [
        "model.vocab=32768",
        "optim.name=adamw",
        "mesh.data=8",
        "mesh.zero=1",
        "train.micro=1",
        "train.recompute=block",
        "train.compile=true",
    ]
    resolved, data_layout = resolve_data(load_recipe("hybrid-7b", words))
    plan = make_plan(resolve_layout(resolved.value, data_layout.windows, check_batch(resolved, 8)), data_layout)
    [memory] = plan.memory
    assert memory.peak.name == "backward" and memory.peak.gradients == 4 * plan.parameters.total <= 27 * 2**30
    assert memory.total <= 65 * 2**30
    needed = f"needs {size(memory.peak.gradients)} for gradients and {size(memory.total)} in all"
    assert needed in " ".join((ROOT / "docs/distributed.md").read_text().split())


def test_balance_compares_the_flops_of_stages():
    plan = plan_of("mesh.pipe=2", "train.recompute=pass")
    first, last = plan.balance.costs
    stages = plan.estimate.stages
    assert first == stages[0].forward + stages[0].recompute + stages[0].backward
    assert last > first > 0.8 * last  # the head
    assert plan.balance.cuts == (2,)
    assert stage_balance(plan.layout) == plan.balance
    waste = 1 - (first + last) / (2 * last)
    assert plan.balance.waste == pytest.approx(waste) and plan.estimate.bubble > waste


def test_the_text_lists_assumptions_and_omissions():
    shown = text(plan_of())
    assert "Assumed: nowhere/text is not there yet" in shown and "mesh.data=N plans for N" in shown
    assert (
        "Not counted: memory of the driver, of NCCL" in shown
        and "sent by a process" not in shown
        and "idle" not in shown
    )
    staged = text(plan_of("mesh.data=2", "mesh.pipe=2", "train.batch=8", "mesh.zero=2"))
    assert "ZeRO 2" in staged and "--processes N" not in staged and "stage 1  blocks 2..3" in staged


def test_cuda_graphs_keep_gradient_accumulators_and_their_other_memory_is_listed_as_omitted():
    """In bf16 at ZeRO 1 the accumulators are the engine's buffers, which always exist."""
    for more, share in (
        (["train.precision=bf16"], 0),
        (["train.precision=bf16", "mesh.zero=2"], 1),
        (["train.precision=fp32", "mesh.zero=2"], 1),
    ):
        plain, graphs = (plan_of("train.recompute=pass", *more, *graphs) for graphs in ([], ["train.cuda_graphs=true"]))
        sums = share * 4 * plain.parameters.total
        before, after = ({m.name: m.gradients for m in plan.memory[0].phases} for plan in (plain, graphs))
        assert after == before | {name: before[name] + sums for name in ("reduction", "update")}
        assert "memory of CUDA graphs" in text(graphs) and "CUDA graphs" not in text(plain)


def test_the_text_lists_the_unknowns_of_zero_3():
    plan = plan_of("mesh.data=2", "mesh.zero=3", "train.batch=8", "mesh.group=0")
    n = plan.parameters.total
    assert plan.memory[0].parameters == pytest.approx(4 * n / 2, rel=1e-3)
    backward = plan.memory[0].phases[0]
    # All gathered parameters, and their gradients until the end of backward.
    assert backward.name == "backward" and backward.gradients >= 2 * 4 * n
    assert "not known" in text(plan) and "when ZeRO 3 gathers" in text(plan)


def test_json_has_the_numbers_of_the_plan():
    plan = plan_of("mesh.pipe=2", "mesh.data=2", "train.batch=8")
    body = to_json(plan)
    assert body["processes"] == {"all": 4, "data": 2, "pipe": 2, "tensor": 1} and body["flops"] == plan.flops
    assert [stage["memory"]["all"] for stage in body["stages"]] == [m.total for m in plan.memory]
    assert body["parameters"]["held"] == sum(stage["elements"] for stage in body["stages"])
    assert set(body["stages"][0]["memory"]["phases"]) == {"backward", "reduction", "update"}


def test_a_ramp_or_draw_is_planned_with_its_largest_number_of_passes():
    plans = [
        plan_of(f"sleep.passes={passes}") for passes in ("3", "{start: 1, stop: 3, steps: 9}", "{low: 2, high: 3}")
    ]
    assert plans[0].flops == plans[1].flops == plans[2].flops


@pytest.mark.parametrize(
    ("n", "shown"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3 GiB"), (1000 * 2**20, "1000 MiB"), (2**52, "4096 TiB")]
)  # fmt: skip
def test_sizes_are_printed_with_binary_units(n, shown):
    assert size(n) == shown


def test_a_recipe_is_completed_before_it_is_planned():
    resolved, layout = resolved_of()
    assert resolved.value.model.vocab == layout.manifest.vocab == 258


def test_deep_recipes_without_scaled_branches_are_named():
    deep = ["model.layers=(GGGA)x3", "sleep.passes=2"]
    shown = text(plan_of(*deep, windows=4))
    assert "Depth: 2 passes over 12 blocks and 4 windows are a deep recurrence" in shown
    assert "model.residual_scale = 1; docs/depth.md recommends 0.055." in shown
    for remedy in (
        "model.residual_scale=0.055",
        "sleep.loop.feedback=embeddings",
        "sleep.gradient.windows=1",
        "sleep.passes=1",
    ):
        assert to_json(plan_of(*deep, remedy, windows=4))["depth"] is None, remedy
    assert "Depth:" not in text(plan_of(windows=4)), "four blocks train without a remedy"
