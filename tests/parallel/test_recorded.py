"""Recorded passes against the tape that launches every kernel: equal bits over steps in which weights and batches change."""

import copy
import logging

import pytest
import torch

from sleeptrain.parallel.tape import Tape
from sleeptrain.parallel.units import Rows
from sleeptrain.program import compile
from tests.model import toy
from tests.model.test_sleep import CASES
from tests.parallel.rerun import replays

STEPS = 3


def trained(model, case, policy, recordings, *, padded=False, offload=False, steps=STEPS):
    """Losses, states, residuals, gradients and weights of some steps of plain gradient descent, each on another batch."""
    sleep, layout, passes = case
    model, found = copy.deepcopy(model), []
    program = compile(sleep, layout, len(model.layers), passes)
    for step in range(steps):
        group = [rows(model, sleep, layout, 2 * step + micro, padded and micro == 0) for micro in range(2)]
        tape = Tape(model, group, program, sleep, policy, offload=offload, sum_dtype=torch.float32, replays=recordings)
        results = tape.run()
        model.zero_grad()
        sum(result.nll.square().sum() for result in results).backward()
        for result in results:
            found += [result.nll.detach(), result.residual, *result.state.flat()]
        with torch.no_grad():
            for weight in model.parameters():
                found.append(weight.grad.clone())
                weight -= 0.05 * weight.grad / (1 + weight.grad.abs().max())
    return [*found, *model.parameters()]


def rows(model, sleep, layout, seed, padded):
    tokens, targets = toy.batch(layout, seed=seed + 1)
    valid = None
    if padded:
        valid = torch.ones(tokens.shape, dtype=torch.bool)
        valid[seed % 2, : 1 + seed % 3] = valid[1 - seed % 2, -2:] = False
        targets[~valid] = -100
    return Rows(tokens, targets, model.zero_state(sleep, 2), valid)


def equal(found, expected):
    assert len(found) == len(expected) and all(tensor.isfinite().all() for tensor in expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("case", CASES)
def test_recorded_passes_compute_the_same_bits_on_every_option_of_the_program(case, caplog):
    number = list(CASES).index(case)
    policy = ("block", "pass", "window")[number % 3]
    model, recordings = toy.model(dtype=torch.float32, tie=number % 2 == 0), replays(torch.float32)
    with caplog.at_level(logging.WARNING, "sleeptrain"):
        found = trained(model, CASES[case], policy, recordings)
    assert not caplog.messages
    equal(found, trained(model, CASES[case], policy, None))
    recorder = recordings.recorder
    assert recorder.recorded <= 24 and recordings.replayed > 2 * recorder.recorded
