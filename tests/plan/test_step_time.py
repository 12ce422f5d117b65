"""Step time: a layout computed by hand, stages that wait for messages, and what cannot be told."""

from dataclasses import replace

import pytest

from sleeptrain.plan import Hardware, step_time, time_json, time_text
from sleeptrain.plan.show_time import checkpoint_bytes
from sleeptrain.plan.step_time import run_time
from tests.plan.plans import plan_of

WIDTH, ROWS, LENGTH = 32, 4, 16
PASSES, LOSSES = 3 + 3 + 1, 3
"""Passes over three windows, all but the last of which sleep; windows with a loss."""
SLOW = Hardware(gpus=2, flops=1e9, share=0.5, node_bandwidth=1e6, network_bandwidth=1e5, price=3.0)


def test_a_step_of_two_data_and_two_tensor_ranks_computed_by_hand():
    plan = plan_of("mesh.data=2", "mesh.tensor=2", "train.batch=8", "train.recompute=pass")
    time = step_time(plan, SLOW)
    # A process has half of the heads and of the MLP: two query heads, one kv head, one key head and two value heads of 8.
    mlp = 6 * WIDTH * 24
    attention = LENGTH * (2 * WIDTH * (3 * 16 + 2 * 8) + mlp) + 4 * 16 * (LENGTH * (LENGTH + 1) // 2)
    deltanet = LENGTH * (2 * WIDTH * (2 * 8 + 3 * 16 + 2 * 2) + 2 * 4 * (2 * 8 + 16) + 6 * 2 * 8 * 8 + mlp)
    head = LENGTH * 2 * WIDTH * (384 // 2)  # 258 ids, padded to two shards of a multiple of 64
    forward = PASSES * 2 * (attention + deltanet) + LOSSES * head
    # Nothing reads the features of the last pass over a window that sleeps: its last block has no backward, and the one before it
    # that of keys, values, gates, the tail's queries and two of the three products of the rule.
    state = LENGTH * (2 * WIDTH * (2 * 8 + 16 + 2 * 2) + 2 * 4 * (8 + 16) + 4 * 2 * 8 * 8)
    unread = (LOSSES - 1) * 2 * (attention + deltanet - state)
    # Once more for recompute, twice for backward.
    assert time.work == pytest.approx(ROWS * (4 * forward - unread) / 0.5e9)
    assert time.idle == 0
    tensor, data = time.messages
    features = ROWS * LENGTH * WIDTH * 4
    # Ring of two: an all-reduce sends its input once. Forward and recompute: two a block and pass and one a window for the
    # embedding of gate and targets; backward: two a block and pass, one a window for the head.
    forwards, backward = 2 * 4 * PASSES + LOSSES, 2 * 4 * PASSES + LOSSES
    assert (tensor.axis, tensor.sent) == ("tensor", features * (2 * forwards + backward))
    assert tensor.exposed == pytest.approx(tensor.sent / 1e6)  # neighbours in a node
    held = plan.parameters.stages[0].elements
    # fp32: half of the gradients twice, and half of the parameters once; to another node, by one adapter.
    assert (data.axis, data.sent) == ("data", (2 + 1) * 4 * held / 2) and data.exposed == pytest.approx(data.sent / 1e5)
    assert time.seconds == pytest.approx(time.work + tensor.exposed + data.exposed)
    run = run_time(plan, time, SLOW)
    hours = time.seconds * 400 * 4 / 3600
    assert (run.gpu_hours, run.cost) == (pytest.approx(hours), pytest.approx(3 * hours))
    assert run.tokens == 8 * 3 * LENGTH and run.mfu == pytest.approx(plan.flops / (time.seconds * 4e9))
    shown, body = time_text(plan, time, SLOW), time_json(plan, time, SLOW)
    assert f"cost {3 * hours:,.0f} at 3 an hour" in shown and "data messages" in shown and "pipe messages" not in shown
    assert body["step"]["seconds"] == time.seconds and body["run"]["gpu_hours"] == run.gpu_hours


def test_latency_is_that_of_every_message():
    plan = plan_of("mesh.data=2", "mesh.tensor=2", "train.batch=8", "train.recompute=pass")
    without, late = (step_time(plan, replace(SLOW, latency=seconds)) for seconds in (0.0, 0.5))
    # As many all-reduces as in the test above, in each of the two micro-batches; and gradients and parameters over the data axis.
    all_reduces = 2 * (2 * (2 * 4 * PASSES + LOSSES) + 2 * 4 * PASSES + LOSSES)
    added = [b.seconds - a.seconds for a, b in zip(without.messages, late.messages, strict=True)]
    assert added == pytest.approx([0.5 * all_reduces, 0.5 * 2]) and late.seconds == pytest.approx(
        without.seconds + sum(added)
    )
    assert "latency of messages" in time_text(plan, without, SLOW)
    assert "latency of messages" not in time_text(plan, late, replace(SLOW, latency=0.5))
    pipe = plan_of("mesh.pipe=2", "train.batch=16", "mesh.group=4")
    assert step_time(pipe, replace(SLOW, latency=9.0)).messages[0].exposed > 9


def test_stages_wait_for_slow_links_only():
    plan = plan_of("mesh.pipe=2", "train.batch=16", "mesh.group=4")
    fast, slow = (step_time(plan, replace(SLOW, gpus=1, network_bandwidth=b)) for b in (1e12, 1e6))
    waited, sent = slow.messages[0].exposed, slow.messages[0].seconds
    assert fast.messages[0].exposed == pytest.approx(0, abs=1e-6) and 0 < waited < sent
    assert (fast.work, fast.idle) == (slow.work, slow.idle) and fast.idle > 0
    stage = max(plan.estimate.stages, key=lambda stage: stage.busy)
    assert fast.idle / (fast.work + fast.idle) == pytest.approx(stage.bubble)


def test_a_checkpoint_holds_master_weights_and_moments_and_the_state_of_lanes():
    plan = plan_of("mesh.data=2", "mesh.tensor=2", "train.batch=8")
    assert checkpoint_bytes(plan) == (12 * plan.parameters.total, 0)
    muon = plan_of("optim.name=muon", "optim.adam_lr=0.001")
    kinds = muon.parameters.kinds
    assert (
        checkpoint_bytes(muon)[0] == 8 * kinds["matrix"] + 12 * kinds["plain"]
        and sum(kinds.values()) == muon.parameters.total
    )
    lanes = plan_of("data.row=48", "data.lane=96")
    assert checkpoint_bytes(lanes)[1] == lanes.memory[0].lanes / 2 > 0


def test_the_time_of_zero_3_is_not_known():
    plan = plan_of("mesh.data=2", "mesh.zero=3", "train.batch=8", "mesh.group=0")
    time = step_time(plan, SLOW)
    assert time.seconds is None and "data messages    not known" in time_text(plan, time, SLOW)
    assert time_json(plan, time, SLOW)["run"] is None


@pytest.mark.parametrize(
    ("passes", "shares"),
    [
        ("{low: 1, high: 4}", {1: 0.25, 2: 0.25, 3: 0.25, 4: 0.25}),
        # 400 steps, of which the first 50 round to 1 (1.5 is rounded to 2).
        ("{start: 1, stop: 2, steps: 100}", {1: 50 / 400, 2: 350 / 400}),
        ("3", {3: 1.0}),
    ],
)
def test_a_run_takes_the_passes_of_its_steps_and_not_the_most_of_any(passes, shares):
    plan = plan_of("mesh.data=2", "train.batch=8", f"sleep.passes={passes}")
    assert plan.layout.steps == 400 and plan.job.sleep.shares_of_passes(400) == pytest.approx(shares)
    time = step_time(plan, SLOW)
    run = run_time(plan, time, SLOW)
    [data] = time.messages  # the same in every step
    flops = {n: make_flops(plan, n) for n in shares}
    mean = sum(share * flops[n] for n, share in shares.items()) / plan.flops
    assert run.seconds == pytest.approx((time.seconds - data.exposed) * mean + data.exposed)
    assert run.passes == pytest.approx(sum(n * share for n, share in shares.items()))
    assert run.days == pytest.approx(run.seconds * 400 / 86400)
    told = f"{run.passes:.3g} passes a step in the mean, at most {max(shares)}"
    assert (told in time_text(plan, time, SLOW)) is (len(shares) > 1)
    body = time_json(plan, time, SLOW)
    assert body["run"]["passes"] == run.passes and body["run"]["seconds_per_step"] == run.seconds
    assert body["step"]["seconds"] == time.seconds


def make_flops(plan, passes):
    """FLOPs of a step with so many passes, planned on their own."""
    return plan_of("mesh.data=2", "train.batch=8", f"sleep.passes={passes}").flops
