"""How stages carry out a schedule: when they wait, what they hold, what they refuse, and what they say when one dies."""

import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from benchmarks.stage_slots import SLOTS, idle_slots
from sleeptrain.execute.autograd import run_with_autograd
from sleeptrain.execute.executor import StageExecutor
from sleeptrain.execute.gradients import GradAccumulator
from sleeptrain.execute.offload import ByteCounter
from sleeptrain.execute.p2p import StageLost
from sleeptrain.execute.segments import block_segments, forward_with_grad, loss_segment
from sleeptrain.program import Loop, Sleep, compile
from sleeptrain.schedule import (
    RECOMPUTE_POLICIES,
    Costs,
    Edge,
    ScheduleAction,
    ValueSizes,
    build_schedule,
    estimate,
    stage_blocks,
)
from tests.distributed import run
from tests.execute import stages as cut
from tests.model import toy

EVERY = (Sleep(window=4, loop=Loop(trigger="every")), toy.windows(4, 3), 3)


def program_of(case, depth):
    return compile(case[0], case[1], depth, case[2])


def timeline_of(case, depth, cuts, group, policy):
    return build_schedule(
        program_of(case, depth), stage_blocks(case[0], depth, cuts), group, RECOMPUTE_POLICIES[policy]
    )


def once(ways, model, case, cuts, policy, group, observer=None):
    """One stage run, watched."""
    sleep, layout, _ = case
    mine, program = cut.share(model, sleep, cuts, ways.stage), program_of(case, len(model.layers))
    plan = cut.pipeline(ways, model, sleep, cuts, policy).plan(program, group, torch.device("cpu"))
    stage = StageExecutor(
        mine, cut.micro_batches(mine, sleep, layout, group), plan, ways, GradAccumulator(torch.float32)
    )
    stage.observer = stage.store.observer = (
        None if observer is None else lambda what, subject: observer(stage, what, subject)
    )
    cut.loss_of(run_with_autograd(stage)).backward()
    return stage


# When stages wait.


def traced(ways, cuts, group, policy):
    """What one stage did, in the order in which it did it."""
    events = []

    def note(stage, what, subject):
        if isinstance(subject, ScheduleAction):
            events.append((what, subject.kind, subject.op, subject.micro, subject.edge))
        else:
            events.append((what, subject.kind, subject.op, subject.micro, Edge(subject.stage, ways.stage, "")))

    once(ways, toy.model("G" * (len(cuts) + 1)), EVERY, cuts, policy, group, note)
    return events


def idle_as_priced(traces, cuts, group, policy):
    depth, nothing = len(cuts) + 1, (0.0,) * (len(cuts) + 1)
    line = timeline_of(EVERY, depth, cuts, group, policy)
    for s, trace in enumerate(traces):
        done = [(kind, op, micro, edge) for what, kind, op, micro, edge in trace if what == "end"]
        stage = line.stages[s]
        assert done == [(a.kind, a.op, a.micro, a.edge) for a in (*stage.forward, *stage.backward)]
    # A token of a block costs one FLOP, so an item of four tokens four; the head nothing.
    costs = Costs(ValueSizes(1.0, nothing, nothing, nothing, nothing), (1.0,) * depth, nothing, speed=4.0)
    expected = estimate(line, costs)
    # On a clock on which only items take time.
    idle = idle_slots(traces)
    total = idle[0] + sum(SLOTS.get(kind, 0) for what, kind, *_ in traces[0] if what == "end")
    assert total == expected.seconds
    assert idle == [stage.idle for stage in expected.stages]
    passes = sum(op.layers == "loop" for op in line.program.ops if hasattr(op, "layers"))
    stages = len(traces)
    if policy == "none":  # others compute again while they wait
        assert sum(idle) / (total * stages) == pytest.approx((stages - 1) / (group * passes + stages - 1))


# What they hold.


def held(ways, policy, group=3):
    """Bytes at the turn, by component, and their largest sum at the beginning and end of any action."""
    found = {"peak": 0}

    def weigh(stage, what, subject):
        # When backward is through a graph, there is nothing left of it to be weighed.
        if what == "begin" or (what == "end" and subject.kind in ("FWD", "RECOMPUTE", "RECV")):
            found["peak"] = max(found["peak"], sum(stage.bytes().values()))
        if what == "begin" and subject == stage.stage.backward[0]:
            found["turn"] = stage.bytes()

    once(ways, toy.model(dtype=torch.float32), EVERY, (2,), policy, group, weigh)
    return found


def sizes():
    """Bytes per row and token of the toy's leaves, counted by hand, and of a block's and the head's graph, measured."""
    model, width = toy.model(dtype=torch.float32), 12
    rows = cut.micro_batches(model, EVERY[0], EVERY[1], 1)[0]
    op = program_of(EVERY, 4).ops[0]
    known = [*model.parameters(), rows.tokens, rows.targets]

    def graph(unit, h):
        node = forward_with_grad(unit, h, rows.state.tensors, wants=unit.leaves)
        total = ByteCounter([*known, node.h, *node.leaves.values()])
        total.add("body", node.saved())
        return total.by_component["body"] / (2 * 4)

    h = torch.randn(2, 4, width)
    graphs = tuple(graph(unit, h) for unit in block_segments(model, op, (0, 4), 4, rows, None))
    fast, conv = (0, 4 * 4 * 4 * 4) * 2, (0, 3 * 2 * 16 * 4) * 2
    return ValueSizes(width * 4.0, fast, conv, (0.0,) * 4, graphs, graph(loss_segment(model, op, rows), h), rows=2)


def as_priced(found, stage, policy, group=3):
    line = timeline_of(EVERY, 4, (2,), group, policy)
    zeros = (0.0,) * 4
    expected = estimate(line, Costs(sizes(), zeros, zeros)).stages[stage]
    for component, size in expected.kept.items():
        assert found["turn"][component] == pytest.approx(size, rel=0.05), (policy, stage, component)
    assert found["peak"] == pytest.approx(sum(expected.peak.values()), rel=0.05), (policy, stage)


# What they refuse.


def refusals(ways):
    """What stages say to a schedule with one communicator per direction, and to schedules that differ between stages."""

    def shared(program, group):
        line = timeline_of(EVERY, 4, (2,), group, "pass")
        return replace(line, channels={edge: edge.direction for edge in line.channels})

    def swapped(program, group):
        line = timeline_of(EVERY, 4, (2,), group, "pass")
        first, last = line.stages
        one, two, *rest = last.forward
        assert one.kind == two.kind == "RECV"
        return replace(line, stages=(first, replace(last, forward=(two, one, *rest))))

    def own(program, group):
        return timeline_of(EVERY, 4, (2,), group, "pass" if ways.stage else "window")

    said = {}
    for make in (shared, swapped, own):
        pipe = cut.pipeline(ways, toy.model(), EVERY[0], (2,), "pass")
        pipe.build = make
        with pytest.raises(ValueError) as error:
            pipe.plan(program_of(EVERY, 4), 2, torch.device("cpu"))
        said[make.__name__] = str(error.value)
    assert not ways._opened
    return said


def conduct():
    """Everything that two stages can show, in one launch."""
    ways = cut.edges()
    return {
        "refused": refusals(ways),
        "trace": {key: traced(ways, (1,), *key) for key in ((2, "none"), (4, "pass"))},
        "held": {policy: held(ways, policy) for policy in RECOMPUTE_POLICIES},
    }


@pytest.fixture(scope="module")
def two():
    return run(conduct, 2)


def test_stages_idle_as_long_as_was_priced(two):
    for (group, policy), _ in two[0]["trace"].items():
        idle_as_priced([found["trace"][group, policy] for found in two], (1,), group, policy)


def test_stages_hold_what_was_priced(two):
    for stage, found in enumerate(two):
        for policy, weighed in found["held"].items():
            as_priced(weighed, stage, policy)


def test_timelines_that_would_block_or_differ_are_refused_before_anything_is_sent(two):
    for found in two:
        assert "invalid schedule: " in found["refused"]["shared"]
        assert "stage 1 expects" in found["refused"]["swapped"]
        assert "processes hold different schedules" in found["refused"]["own"]


def traced_by_four():
    ways, cuts = cut.edges(), (1, 2, 3)
    return {key: traced(ways, cuts, *key) for key in ((4, "none"), (4, "pass"), (6, "window"))}


@pytest.mark.slow
def test_four_stages_idle_as_long_as_was_priced():
    four = run(traced_by_four, 4, timeout=300)
    for group, policy in four[0]:
        idle_as_priced([found[group, policy] for found in four], (1, 2, 3), group, policy)


# What they say when one dies, or stops.


def broken(folder, how, when):
    """The last stage dies or stops in its `when`-th action; the first writes down what it was told."""
    ways, done = cut.edges(timeout=timedelta(seconds=3)), []

    def fail(stage, what, subject):
        done.append(subject)
        if ways.stage == 1 and len(done) == when:
            if how == "dies":
                os._exit(3)
            dist.distributed_c10d._get_default_store().get("the other gave up")

    try:
        once(ways, toy.model(), EVERY, (2,), "pass", 2, fail)
    except StageLost as error:
        if ways.stage == 0:
            Path(folder, "said").write_text(str(error))
            dist.distributed_c10d._get_default_store().set("the other gave up", "")


def test_a_stage_that_dies_is_named_by_the_others(tmp_path):
    with pytest.raises(AssertionError, match="rank 1 of 2 died"):
        run(broken, 2, str(tmp_path), "dies", 40)
    lost((tmp_path / "said").read_text())


@pytest.mark.slow
def test_a_stage_that_stops_is_named_by_the_others(tmp_path):
    run(broken, 2, str(tmp_path), "stops", 140)
    lost((tmp_path / "said").read_text())


def lost(said):
    assert said.startswith("stage 0 of the pipeline waited for ") and "stage 1 (rank 1) did not answer" in said
