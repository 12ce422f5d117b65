"""Small schedules compared with hand-written action sequences."""

import pytest

from sleeptrain.program import Evict, Gradient, Loop, Sleep, Window, compile
from sleeptrain.schedule import RECOMPUTE_POLICIES, build_schedule, stage_blocks

SLEEPING_THEN_PREDICTED = [Window(0, 4, False), Window(4, 8, True)]


def schedule(cuts=(), group=1, policy="none", layout=SLEEPING_THEN_PREDICTED, depth=4, tied=False, **sleep):
    config = Sleep(window=4, **{"passes": 2, **sleep})
    return build_schedule(
        compile(config, layout, depth), stage_blocks(config, depth, cuts), group, RECOMPUTE_POLICIES[policy], tied
    )


def words(actions):
    """`F0.1`: FWD of op 0 on micro-batch 1; sends and receives with `>to` and `<from`."""
    letters = {"FWD": "F", "RECOMPUTE": "R", "BWD": "B", "LOSS": "L", "SEND": "S", "RECV": "W", "REDUCE": "A"}
    tail = {"SEND": lambda e: f">{e.dst}", "RECV": lambda e: f"<{e.src}"}
    return " ".join(letters[a.kind] + f"{a.op}.{a.micro}" + tail.get(a.kind, lambda e: "")(a.edge) for a in actions)


def frees(actions, kind):
    return {(a.kind, a.op, v.op) for a in actions for v in a.frees if v.kind == kind}


def test_one_stage_runs_forward_then_backward_in_reverse():
    # Ops: 0 and 1 are the passes of the sleeping window, 2 its boundary, 3 the predicted window.
    (stage,) = schedule().stages
    assert words(stage.forward) == "F0.0 F1.0 F3.0 L3.0"
    assert words(stage.backward) == "L3.0 B3.0 B1.0 B0.0"
    assert [stage.ops[i].boundary is not None for i in (0, 1, 3)] == [False, True, False]


def test_every_pass_runs_all_micro_batches_before_the_next_pass():
    (stage,) = schedule(group=2, policy="pass").stages
    assert words(stage.forward) == "F0.0 F0.1 F1.0 F1.1 F3.0 L3.0 F3.1 L3.1"
    assert words(stage.backward) == "R3.1 L3.1 B3.1 R3.0 L3.0 B3.0 R1.1 B1.1 R1.0 B1.0 R0.1 B0.1 R0.0 B0.0"


def test_two_stages_send_features_in_a_circle_and_post_receives_one_pass_early():
    first, last = schedule(cuts=(2,), group=2).stages
    assert (
        words(first.forward) == "F0.0 S0.0>1 W0.0<1 F0.1 S0.1>1 W0.1<1 F1.0 S1.0>1 F1.1 S1.1>1 F3.0 S3.0>1 F3.1 S3.1>1"
    )
    assert words(last.forward) == (
        "W0.0<0 W0.1<0 F0.0 S0.0>0 W1.0<0 F0.1 S0.1>0 W1.1<0 F1.0 W3.0<0 F1.1 W3.1<0 F3.0 L3.0 F3.1 L3.1"
    )
    assert words(last.backward) == (
        "L3.1 B3.1 S3.1>0 L3.0 B3.0 S3.0>0 B1.1 S1.1>0 W0.1<0 B1.0 S1.0>0 W0.0<0 B0.1 S0.1>0 B0.0 S0.0>0"
    )
    assert words(first.backward) == (
        "W3.1<1 W3.0<1 B3.1 W1.1<1 B3.0 W1.0<1 B1.1 S0.1>1 W0.1<1 B1.0 S0.0>1 W0.0<1 B0.1 B0.0"
    )


def test_prelude_runs_on_the_first_stage_and_coda_on_the_last():
    loop = Loop(layers=(1, 3), trigger="every")
    first, last = schedule(cuts=(2,), group=2, loop=loop, layout=[Window(0, 4, True)] * 2).stages
    # Ops: prelude 0, loop 1, coda 2 (in pass 1), loop 3, boundary 4, prelude 5, loop 6, coda 7.
    assert [first.ops[i].blocks for i in first.ops] == [(0, 1), (1, 2), (1, 2), (0, 1), (1, 2)]
    assert [last.ops[i].blocks for i in last.ops] == [(2, 3), (3, 4), (2, 3), (2, 3), (3, 4)]
    assert words(first.forward).startswith("F0.0 F1.0 S1.0>1 W1.0<1 F0.1 F1.1 S1.1>1 W1.1<1 F3.0 S3.0>1")
    # The send that continues the loop goes first, then the coda and its loss.
    assert words(last.forward).startswith("W1.0<0 W1.1<0 F1.0 S1.0>0 F2.0 L2.0 W3.0<0 F1.1 S1.1>0 F2.1 L2.1")


def test_prelude_features_are_sent_once_and_their_gradient_is_sent_back_once():
    first, last = schedule(cuts=(1,), group=2, passes=3, loop=Loop(layers=(1, 4), feedback="embeddings")).stages
    assert words(first.forward) == "F0.0 S0.0>1 F0.1 S0.1>1 F5.0 S5.0>1 F5.1 S5.1>1"
    assert [i for i in last.ops if last.ops[i].receives] == [1, 6]
    assert [i for i in last.ops if last.ops[i].sends_grad] == [1, 6]
    assert words(first.backward).endswith("B0.1 B0.0")


def test_features_are_sent_through_the_final_norm_if_the_next_pass_reads_normed_features():
    first, last = schedule(cuts=(2,), group=2, loop=Loop(feedback="normed")).stages
    assert [i for i in last.ops if last.ops[i].normed] == [0]
    assert not any(stage_op.normed for stage_op in first.ops.values())


def test_policy_pass_saves_the_state_of_every_pass_and_policy_window_restores_it():
    layout, kept = [Window(0, 4, False), Window(4, 8, True)], {}
    for policy in ("pass", "window"):
        (stage,) = schedule(passes=3, policy=policy, layout=layout).stages
        kept[policy] = {v.op for a in stage.backward for v in a.frees if v.kind == "S"}
        rerun = [a.op for a in stage.backward if a.kind == "FWD"]
        assert rerun == ([0, 1] if policy == "window" else [])
    assert frees(schedule(passes=3, policy="window", layout=layout).stages[0].forward, "S") == {
        ("FWD", 1, 0), ("FWD", 2, 1)
    }  # fmt: skip
    assert kept["pass"] == {-1, 0, 1, 2} and kept["window"] == {-1, 0, 1, 2}
    assert not frees(schedule(passes=3, policy="pass", layout=layout).stages[0].forward, "S")


def test_policy_window_saves_received_features_and_frees_own_features():
    first, last = schedule(cuts=(2,), group=2, policy="window").stages
    for s, stage in enumerate((first, last)):
        in_forward = [v for a in stage.forward for v in a.frees if v.kind == "h"]
        assert in_forward and all(v.stage == s for v in in_forward)


def test_gradient_truncation_removes_backward_actions():
    every = {"loop": Loop(trigger="every"), "layout": [Window(0, 4, True), Window(4, 8, True)], "passes": 3}
    (full,) = schedule(**every).stages
    (truncated,) = schedule(**every, gradient=Gradient(passes=1)).stages
    # Ops: 0, 1 and 2 are the passes of the first window, 3 its boundary, 4 the second window. With gradient.passes = 1,
    # op 0 has the backward of its own loss only, and op 1 has no backward.
    assert words(full.backward) == "L4.0 B4.0 B2.0 B1.0 L0.0 B0.0"
    assert words(truncated.backward) == "L4.0 B4.0 B2.0 L0.0 B0.0"
    assert not truncated.ops[2].S.grad and not truncated.ops[0].dS
    (per_window,) = schedule(**every, gradient=Gradient(windows=1)).stages
    assert words(per_window.backward) == "L4.0 B4.0 L0.0 B0.0"


def test_gradient_truncation_removes_the_messages_of_removed_gradients():
    layout = [Window(0, 4, True), Window(4, 8, True)]
    every = {"loop": Loop(trigger="every"), "layout": layout, "passes": 3, "gradient": Gradient(passes=1)}
    first, last = schedule(cuts=(2,), group=2, **every).stages
    assert [words(first.forward).count(f"S{i}.0>1") for i in (0, 1, 2, 4)] == [1, 1, 1, 1]
    assert [words(last.backward).count(f"S{i}.0>0") for i in (0, 1, 2, 4)] == [1, 0, 1, 1]
    assert ">1" not in words(first.backward)


def test_sliding_eviction_makes_the_attention_cache_an_input_with_a_gradient():
    (stage,) = schedule(evict=Evict("sliding"), policy="pass").stages
    assert [i for i in stage.ops if stage.ops[i].makes_kv] == [1]
    assert stage.ops[3].kv is not None and stage.ops[3].kv.op == 1 and stage.ops[3].kv.grad
    assert stage.ops[1].dkv


def test_a_program_without_targets_has_no_backward():
    first, last = schedule(cuts=(2,), group=2, layout=[Window(0, 4, False)]).stages
    assert not first.backward and not last.backward


def test_the_gradient_of_a_tied_matrix_is_reduced_last_by_the_first_and_last_stage():
    first, middle, last = schedule(cuts=(1, 2), group=3, tied=True).stages
    assert first.backward[-1].kind == last.backward[-1].kind == "REDUCE"
    assert all(a.kind != "REDUCE" for a in middle.backward)
    assert all(a.kind != "REDUCE" for a in schedule(tied=True).stages[0].backward)


def test_a_group_smaller_than_the_number_of_stages_raises_value_error():
    with pytest.raises(ValueError, match=r"a group of 3 micro-batches cannot keep 4 stages busy.*4 or more"):
        schedule(cuts=(1, 2, 3), group=3)
