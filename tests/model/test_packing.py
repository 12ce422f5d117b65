"""Packed rows equal their documents, each run alone with the same cuts: losses, gradients and the state that is left."""

import dataclasses
import itertools

import pytest
import torch

from sleeptrain.model.micro_batch import MicroBatch, starts_by_window
from sleeptrain.model.sleep import run
from sleeptrain.program import Boundary, Evict, Gradient, Loop, Program, Sleep, compile
from tests.gradients import assert_same_gradients
from tests.model import toy

WINDOW = 6
# First tokens of the documents of two rows. Row 0: the rest of a document, several in one window, one that fills windows, one
# that begins with a window. Row 1: documents of one token, one that ends with a window, one over all windows that are left.
STARTS = ([2, 3, 12, 14], [0, 1, 5, 6, 9])
EVERY = Loop(trigger="every")
CASES = {
    "N=1": Sleep(window=WINDOW, loop=EVERY),
    "N=2": Sleep(window=WINDOW, passes=2, loop=EVERY),
    "N=3, sliding": Sleep(window=WINDOW, passes=3, loop=EVERY, evict=Evict(mode="sliding")),
    "N=1, sliding": Sleep(window=WINDOW, loop=EVERY, evict=Evict(mode="sliding")),
    "N=3, normed, no tail": Sleep(
        window=WINDOW, passes=3, loop=dataclasses.replace(EVERY, feedback="normed"), evict=Evict(conv_carry=False)
    ),
    "N=2, gated, sliding, looped range": Sleep(
        window=WINDOW, passes=2, loop=Loop((1, 3), "gated", "every"), evict=Evict(mode="sliding")
    ),
    "N=3, truncated": Sleep(window=WINDOW, passes=3, loop=EVERY, gradient=Gradient(passes=2, windows=2)),
    "N=3, context": Sleep(window=WINDOW, passes=3),
    "N=2, context, sliding, looped range": Sleep(
        window=WINDOW, passes=2, loop=Loop((1, 3)), evict=Evict(mode="sliding")
    ),
}


def layout_of(sleep, count=3):
    scored = sleep.loop.trigger == "every"
    return toy.windows(WINDOW, count, lambda i: scored or i == count - 1)


def packed_rows(layout, starts=STARTS, seed=1):
    """Tokens, targets that do not cross documents, and first tokens."""
    tokens, targets = toy.batch(layout, rows=len(starts), seed=seed)
    first = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, positions in enumerate(starts):
        first[row, positions] = True
    return tokens, targets, first


def gradients(model, nll):
    """Of a loss that differs at every position; parameters that it does not reach have zeros."""
    model.zero_grad()
    nll.square().sum().backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def program_of_document(program, start, stop):
    """The ops of the windows that hold tokens start..stop-1 of a row, cut to these tokens and moved to the front."""
    ops, number, window = [], -1, None
    for op in program.ops:
        if isinstance(op, Boundary):
            if op.window == window:
                ops.append(dataclasses.replace(op, window=number))
            continue
        low, high = max(op.start, start), min(op.stop, stop)
        if low >= high:
            continue
        if op.window != window:
            window, number = op.window, number + 1
        ops.append(
            dataclasses.replace(
                op, window=number, start=low - start, stop=high - start, kv_read=op.kv_read and number > 0,
                position0=low - start if op.position0 else 0,
            )
        )  # fmt: skip
    return Program(tuple(ops[:-1] if isinstance(ops[-1], Boundary) else ops), program.span)


def run_alone(model, sleep, program, tokens, targets, first):
    """The losses of all rows and the final states of their last documents, from runs of one document each."""
    nlls, states = [], []
    for row in range(len(tokens)):
        cuts = sorted({0, *first[row].nonzero()[:, 0].tolist(), tokens.shape[1]})
        pieces = []
        for start, stop in itertools.pairwise(cuts):
            part = (slice(row, row + 1), slice(start, stop))
            alone = MicroBatch(tokens[part], targets[part], model.zero_state(sleep, 1))
            output = run(model, alone, program_of_document(program, start, stop), sleep)
            pieces.append(output.nll)
        nlls.append(torch.cat(pieces, 1))
        states.append(output.state)
    return torch.cat(nlls), states


JET = ("N=2", "N=2, context, sliding, looped range")
MODELS = [(toy.model, case) for case in CASES] + [(toy.jet, case) for case in JET]


@pytest.mark.parametrize(("make", "case"), MODELS, ids=[f"{make.__name__}-{case}" for make, case in MODELS])
def test_a_packed_row_equals_its_documents(make, case):
    sleep = CASES[case]
    model = make(gated=sleep.gated)
    layout = layout_of(sleep)
    tokens, targets, first = packed_rows(layout)
    program = compile(sleep, layout, len(model.layers))
    packed = MicroBatch(tokens, targets, model.zero_state(sleep, 2), starts=starts_by_window(first, layout))
    output = run(model, packed, program, sleep)
    found = gradients(model, output.nll)
    nll, states = run_alone(model, sleep, program, tokens, targets, first)
    wanted = gradients(model, nll)
    torch.testing.assert_close(output.nll, nll, rtol=0, atol=1e-12)
    assert_same_gradients(found, wanted, bound=1e-11)
    assert any(bool(g.abs().max() > 1e-3) for g in wanted.values())
    for row, state in enumerate(states):
        for leaf in state.spec:
            if leaf.kind in ("fast", "conv"):
                torch.testing.assert_close(output.state[leaf.name][row : row + 1], state[leaf.name], rtol=0, atol=1e-12)


def test_the_model_takes_first_tokens():
    """The mean loss of packed rows is that over the targets of their documents."""
    sleep = CASES["N=2"]
    model, layout = toy.model(), layout_of(sleep)
    tokens, targets, first = packed_rows(layout)
    nll, _ = run_alone(model, sleep, compile(sleep, layout, len(model.layers)), tokens, targets, first)
    found = model(tokens, targets, sleep=sleep, starts=first)
    torch.testing.assert_close(found.double(), nll.sum().double() / (targets != -100).sum(), rtol=1e-6, atol=0)
    assert abs(found - model(tokens, targets, sleep=sleep)) > 1e-3


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda first: first[:, :-1],
            r"starts must be bool of the shape of tokens, \[2, 18\], not torch.bool \[2, 17\]",
        ),
        (lambda first: first.long(), "not torch.int64"),
        (lambda first: first | (torch.arange(18) == 16), "starts marks padding, row 1, token 16"),
    ],
)
def test_first_tokens_that_do_not_fit_are_refused(change, message):
    sleep = CASES["N=1"]
    tokens, targets, first = packed_rows(layout_of(sleep))
    valid = torch.ones(tokens.shape, dtype=torch.bool)
    valid[1, 15:] = False
    targets[~valid] = -100
    with pytest.raises(ValueError, match=message):
        toy.model()(tokens, targets, sleep=sleep, valid=valid, starts=change(first & valid))
