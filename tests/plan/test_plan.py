"""The plan as a whole: processes, traffic counted by hand, idle, balance, and what does not fit."""

import pytest

from sleeptrain.config import UserError
from sleeptrain.plan import planned_world, stage_balance, text, to_json
from sleeptrain.plan.show import size
from tests.plan.plans import plan_of, resolved_of

WIDTH, ROWS, LENGTH = 32, 4, 16
PASSES = 3 + 3 + 1
"""Over three windows, of which all but the last sleep."""


def test_the_mesh_names_the_processes_unless_they_are_given():
    assert (
        plan_of().layout.world == 1
        and plan_of("mesh.pipe=2").layout.world == 2
        and plan_of("mesh.data=2", "mesh.tensor=2", "train.batch=8").layout.world == 4
    )
    taken = plan_of("mesh.pipe=2", "train.batch=16", world=8)
    assert (taken.layout.world, taken.layout.batch.data, taken.layout.batch.accumulation) == (8, 4, 1)
    assert planned_world(taken.job, None) == 2  # mesh.data = 0: one process, for want of a number
    with pytest.raises(UserError, match=r"mesh\.data = 2 \(command line\): 3 processes were started; start 2"):
        plan_of("mesh.data=2", "train.batch=8", world=3)
    with pytest.raises(UserError, match=r"train\.batch = 4 .*does not divide over 3 processes"):
        plan_of(world=3)
    with pytest.raises(UserError, match=r"the 1 micro-batches of each of 1 processes"):
        plan_of("train.batch=2")


def test_traffic_over_the_data_axis_by_hand():
    def sent(*overrides):
        plan = plan_of("mesh.data=2", "train.batch=16", *overrides)
        return plan.traffic[0]["data"], plan.parameters.total

    for changes, sums, weight in (
        ([], 1, 4), (["mesh.zero=2"], 2, 4), (["train.precision=bf16"], 1, 2), (["train.precision=bf16", "mesh.zero=2"], 2, 2),
    ):  # fmt: skip
        found, n = sent(*changes)
        # A ring over two sends half of a sum twice, and half of what is collected once.
        assert found == n * 4 * sums + n * weight / 2
    assert plan_of().traffic[0]["data"] == 0


def test_traffic_between_stages_by_hand():
    plan = plan_of("mesh.pipe=2", "train.batch=8", "train.recompute=none", "model.tie=false")
    h = 2 * LENGTH * WIDTH * 4  # two rows of a window
    backwards, micro = plan.layout.batch.accumulation, plan.layout.batch.group
    assert (backwards, micro) == (2, 2)
    wraps = 4  # passes that read what another one made
    assert [t["pipe"] for t in plan.traffic] == [backwards * micro * h * (PASSES + wraps)] * 2


def test_traffic_over_the_tensor_axis_by_hand():
    """Twice in every block, forward and back, for every pass; once for every embedding, and once for every head's backward."""
    plan = plan_of("mesh.tensor=2", "train.recompute=none")
    h = ROWS * LENGTH * WIDTH * 4
    assert plan.traffic[0]["tensor"] == h * (2 * 4 * PASSES * 2 + 3 + 3)
    again = plan_of("mesh.tensor=2", "train.recompute=pass")
    assert again.traffic[0]["tensor"] == plan.traffic[0]["tensor"] + h * (2 * 4 * PASSES + 3)


def test_what_goes_to_the_host_comes_back():
    plan = plan_of("train.offload=true", "train.recompute=pass", "train.batch=8")
    assert plan.traffic[0]["host"] == 2 * plan.memory[0].host * plan.layout.batch.accumulation > 0
    assert plan.memory[0].total < plan_of("train.recompute=pass", "train.batch=8").memory[0].total


def test_stages_are_weighed_by_what_they_compute():
    plan = plan_of("mesh.pipe=2", "train.recompute=pass")
    first, last = plan.balance.costs
    stages = plan.estimate.stages
    assert first == stages[0].forward + stages[0].recompute + stages[0].backward
    assert last > first > 0.8 * last  # the head
    assert plan.balance.cuts == (2,)
    assert stage_balance(plan.layout) == plan.balance
    waste = 1 - (first + last) / (2 * last)
    assert plan.balance.waste == pytest.approx(waste) and plan.estimate.bubble > waste


def test_it_says_what_it_takes_for_granted_and_what_it_leaves_out():
    shown = text(plan_of())
    assert "Assumed: nowhere/text is not there yet" in shown and "mesh.data=N plans for N" in shown
    assert (
        "Not counted: memory of the driver, of NCCL" in shown
        and "sent by a process" not in shown
        and "idle" not in shown
    )
    whole = text(plan_of("mesh.data=2", "mesh.pipe=2", "train.batch=8", "mesh.zero=2"))
    assert "ZeRO 2" in whole and "--processes N" not in whole and "stage 1  blocks 2..3" in whole


def test_sums_that_recordings_add_to_stay_and_the_rest_of_them_is_said_to_be_left_out():
    for more in (["train.precision=bf16"], ["train.precision=fp32", "mesh.zero=2"]):
        plain, graphs = (plan_of("train.recompute=pass", *more, *graphs) for graphs in ([], ["train.cuda_graphs=true"]))
        sums = 4 * plain.parameters.total
        before, after = ({m.name: m.gradients for m in plan.memory[0].phases} for plan in (plain, graphs))
        assert after == before | {name: before[name] + sums for name in ("reduction", "update")}
        assert "memory of CUDA graphs" in text(graphs) and "CUDA graphs" not in text(plain)


def test_zero_3_says_what_it_does_not_know():
    plan = plan_of("mesh.data=2", "mesh.zero=3", "train.batch=8", "mesh.group=0")
    n = plan.parameters.total
    assert plan.memory[0].parameters == pytest.approx(4 * n / 2, rel=1e-3)
    backward = plan.memory[0].phases[0]
    # All parameters are whole while they are used, and so are their gradients until backward is over.
    assert backward.name == "backward" and backward.gradients >= 2 * 4 * n
    assert "not known" in text(plan) and "when ZeRO 3 gathers" in text(plan)


def test_json_holds_the_same():
    plan = plan_of("mesh.pipe=2", "mesh.data=2", "train.batch=8")
    body = to_json(plan)
    assert body["processes"] == {"all": 4, "data": 2, "pipe": 2, "tensor": 1} and body["flops"] == plan.flops
    assert [stage["memory"]["all"] for stage in body["stages"]] == [m.total for m in plan.memory]
    assert body["parameters"]["held"] == sum(stage["elements"] for stage in body["stages"])
    assert set(body["stages"][0]["memory"]["phases"]) == {"backward", "reduction", "update"}


def test_a_ramp_is_planned_at_its_largest():
    plans = [
        plan_of(f"sleep.passes={passes}") for passes in ("3", "{start: 1, stop: 3, steps: 9}", "{low: 2, high: 3}")
    ]
    assert plans[0].flops == plans[1].flops == plans[2].flops


@pytest.mark.parametrize(
    ("n", "shown"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3 GiB"), (1000 * 2**20, "1000 MiB"), (2**52, "4096 TiB")]
)  # fmt: skip
def test_bytes_in_words(n, shown):
    assert size(n) == shown


def test_a_recipe_is_completed_before_it_is_planned():
    resolved, layout = resolved_of()
    assert resolved.value.model.vocab == layout.manifest.vocab == 258
