"""Compiled programs against hand-written passes, and validation of the `sleep:` section."""

import pytest

from sleeptrain.program import Boundary, Draw, Evict, Gradient, Loop, Pass, Ramp, Sleep, Window, compile, pairs_seen

LAYOUT = [Window(0, 4, False), Window(4, 8, False), Window(8, 10, True)]


def passes(program):
    return [op for op in program.ops if isinstance(op, Pass)]


def test_trigger_context_sleeps_on_windows_without_targets_and_predicts_in_one_pass():
    program = compile(Sleep(window=4, passes=3), LAYOUT, depth=2)
    assert [(p.window, p.index, p.of, p.loss) for p in passes(program)] == [
        (0, 1, 3, False), (0, 2, 3, False), (0, 3, 3, False),
        (1, 1, 3, False), (1, 2, 3, False), (1, 3, 3, False),
        (2, 1, 1, True),
    ]  # fmt: skip
    assert [p.reads for p in passes(program)[:3]] == ["tokens", "raw", "raw"]
    assert [op for op in program.ops if isinstance(op, Boundary)] == [Boundary(0, 0, False), Boundary(1, 0, False)]
    assert program.token_passes == 3 * 4 + 3 * 4 + 2


def test_trigger_every_predicts_each_window_and_sleeps_on_all_but_the_last():
    layout = [Window(0, 4, True), Window(4, 8, True)]
    program = compile(Sleep(window=4, passes=2, loop=Loop(trigger="every")), layout, depth=2)
    assert [(p.window, p.index, p.loss) for p in passes(program)] == [(0, 1, True), (0, 2, False), (1, 1, True)]


def test_prelude_and_coda_run_once_per_window_at_the_pass_set_by_the_trigger():
    def order(trigger):
        sleep = Sleep(window=4, passes=2, loop=Loop(layers=(1, 3), trigger=trigger))
        return [(p.layers, p.index, p.reads, p.loss) for p in passes(compile(sleep, LAYOUT[1:], depth=4))]

    predicted = [("prelude", 1, "tokens", False), ("loop", 1, "above", False), ("coda", 1, "raw", True)]
    sleeping = [("prelude", 1, "tokens", False), ("loop", 1, "above", False), ("loop", 2, "raw", False)]
    assert order("context") == [*sleeping, ("coda", 2, "raw", False), *predicted]
    assert order("every") == [*sleeping[:2], ("coda", 1, "raw", False), sleeping[2], *predicted]


def test_sliding_eviction_keeps_the_cache_of_the_final_pass_and_continues_positions():
    program = compile(Sleep(window=4, passes=2, evict=Evict("sliding")), LAYOUT, depth=2)
    assert [(p.position0, p.kv_read, p.kv_write) for p in passes(program)] == [
        (0, False, False), (0, False, True), (4, True, False), (4, True, True), (8, True, False),
    ]  # fmt: skip
    assert all(op.keep_kv == 3 for op in program.ops if isinstance(op, Boundary))


def test_gradient_passes_and_windows_set_grad_and_detach():
    every = Loop(trigger="every")
    layout = [Window(0, 4, True), Window(4, 8, True), Window(8, 12, True)]
    program = compile(Sleep(window=4, passes=3, loop=every, gradient=Gradient(passes=1)), layout, depth=2)
    assert [(p.grad, p.detach) for p in passes(program)[:3]] == [(True, False), (False, False), (True, True)]
    truncated = compile(Sleep(window=4, loop=every, gradient=Gradient(windows=2)), layout, depth=2)
    assert [op.detach for op in truncated.ops if isinstance(op, Boundary)] == [False, True]


def test_programs_with_different_ops_or_spans_have_different_keys():
    a, b = (compile(Sleep(window=4, passes=n), LAYOUT, 2) for n in (1, 2))
    assert a.key != b.key and a.key == compile(Sleep(window=4, passes=5), LAYOUT, 2, passes=1).key
    assert a.key != compile(Sleep(window=5), LAYOUT, 2).key


def test_windows_longer_than_sleep_window_and_empty_layouts_raise_value_error():
    with pytest.raises(ValueError, match=r"window 0\.\.4 has 4 tokens; sleep\.window = 3"):
        compile(Sleep(window=3), LAYOUT, 2)
    with pytest.raises(ValueError, match="at least one window"):
        compile(Sleep(), [], 2)


def test_ramp_and_draw_give_the_number_of_passes_of_a_step():
    ramp = Sleep(passes=Ramp(1, 4, 30))
    assert [ramp.passes_at(s, 0) for s in (0, 10, 30, 99)] == [1, 2, 4, 4] and ramp.max_passes == 4
    draw = Sleep(passes=Draw(1, 4))
    drawn = [draw.passes_at(s, 7) for s in range(200)]
    assert set(drawn) == {1, 2, 3, 4} and drawn == [draw.passes_at(s, 7) for s in range(200)]
    assert drawn != [draw.passes_at(s, 8) for s in range(200)]


@pytest.mark.parametrize(
    ("sleep", "field"),
    [
        (Sleep(window=0), "window"),
        (Sleep(passes=0), "passes"),
        (Sleep(passes=1001), "passes"),
        (Sleep(passes=Draw(3, 2)), "passes"),
        (Sleep(passes=Ramp(0, 2, 5)), "passes"),
        (Sleep(loop=Loop(layers=(3, 1))), "loop.layers"),
        (Sleep(gradient=Gradient(passes=0)), "gradient.passes"),
        (Sleep(gradient=Gradient(windows=0)), "gradient.windows"),
    ],
)
def test_every_invalid_value_is_reported_with_its_field(sleep, field):
    assert [p.field for p in sleep.problems()] == [field]


@pytest.mark.parametrize(
    ("sleep", "message"),
    [
        (Sleep(passes=0), r"sleep\.passes = 0: must be at least 1"),
        (Sleep(loop=Loop(feedback="nromed")), r"sleep\.loop\.feedback = 'nromed': must be one of raw, normed, embeddings, gated"),
        (Sleep(loop=Loop(trigger="evry")), r"sleep\.loop\.trigger = 'evry': must be one of context, every"),
        (Sleep(evict=Evict("slide")), r"sleep\.evict\.mode = 'slide': must be one of hard, sliding"),
        (Sleep(loop=Loop(layers=(1, 5))), r"sleep\.loop\.layers = \[1, 5\]: the model has 4 blocks"),
    ],
)  # fmt: skip
def test_values_that_were_given_in_python_are_checked(sleep, message):
    """A recipe's values are checked when it is read; these would silently mean others."""
    with pytest.raises(ValueError, match=message):
        compile(sleep, [Window(0, 4, True)], 4)


def test_an_attention_window_shorter_than_the_span_reduces_query_key_pairs():
    program = compile(Sleep(window=4, evict=Evict("sliding")), [Window(0, 4, True), Window(4, 8, True)], 1)
    first, second = (op for op in program.ops if isinstance(op, Pass))
    assert [pairs_seen(program, op) for op in (first, second)] == [1 + 2 + 3 + 4, 4 * 4]
    assert [pairs_seen(program, op, 3) for op in (first, second)] == [1 + 2 + 3 + 3, 4 * 3]
    assert pairs_seen(program, first, 9) == 10
