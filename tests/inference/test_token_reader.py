"""Reading single tokens: states are values, the work of a token does not depend on what was read, and it may be compiled."""

import logging
from collections import Counter

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sleeptrain.inference import SleepSession
from sleeptrain.inference.compiled import compiled_functions
from sleeptrain.model.compile_blocks import missing_compiler
from sleeptrain.program import Evict, Loop, Sleep
from tests.model import toy

EVERY = Sleep(window=8, passes=2, loop=Loop(trigger="every"))


@pytest.fixture(autouse=True)
def nothing_compiled():
    """What one test compiles, or could not compile, is not there in another."""
    compiled_functions.cache_clear()
    yield
    compiled_functions.cache_clear()


def flat(tree):
    """The tensors of arguments or results."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Operators(TorchDispatchMode):
    """Counts operators, and the bytes of the tensors that they make."""

    def __init__(self):
        super().__init__()
        self.calls, self.bytes = Counter(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.calls[function] += 1
        known = {tensor.untyped_storage().data_ptr() for tensor in flat(args)}
        new = {tensor.untyped_storage().data_ptr(): tensor for tensor in flat(result)}
        self.bytes += sum(tensor.nbytes for at, tensor in new.items() if at not in known)
        return result


def of_a_token(length, passes):
    """The operators of a written token after `length` others."""
    session = SleepSession(toy.model(), EVERY, passes=passes)
    session.prefill(torch.arange(length)[None] % toy.VOCAB)
    session.prefill(torch.tensor([[3]]), scored=True)
    with Operators() as operators:
        session.prefill(torch.tensor([[3]]), scored=True)
    return operators


def test_the_work_of_a_token_depends_neither_on_the_context_nor_on_the_passes():
    first = of_a_token(2, 1)
    for length, passes in ((2, 2), (2, 8), (8 + 2, 1), (20 * 8 + 2, 4)):
        other = of_a_token(length, passes)
        assert other.calls == first.calls and other.bytes == first.bytes
    # Within a window only attention reads more; nothing that was cached is copied.
    later = of_a_token(5, 1)
    assert later.calls == first.calls and later.bytes == first.bytes


@pytest.mark.parametrize("mode", ["hard", "sliding"])
def test_a_state_is_not_changed_by_tokens_after_it(mode):
    sleep = Sleep(window=8, passes=2, loop=Loop(trigger="every"), evict=Evict(mode))
    session, tokens = SleepSession(toy.model(), sleep, batch=2), toy.batch(toy.windows(8, 3))[0]
    states, copies, logits = [], [], []
    for i in range(tokens.shape[1]):
        logits.append(session.feed(tokens[:, i : i + 1]))
        states.append(session.state())
        copies.append({name: tensor.clone() for name, tensor in session.state().tensors.items()})
    for state, copy in zip(states, copies, strict=True):
        assert all(torch.equal(state[name], tensor) for name, tensor in copy.items())
    # Another text branches off, and then the first one goes on from the same state.
    session.load_state(states[10])
    session.feed(tokens[:, :3].flip(1)[:, :1])
    session.load_state(states[10])
    for i in range(11, tokens.shape[1]):
        assert torch.equal(session.feed(tokens[:, i : i + 1]), logits[i])


def test_where_nothing_can_be_compiled_one_line_says_so(monkeypatch, caplog):
    monkeypatch.setattr("sleeptrain.model.compile_blocks.missing_compiler", lambda: "there is no compiler")
    with caplog.at_level(logging.WARNING, "sleeptrain"):
        tokens = [written(compiled=True) for _ in range(2)]
    assert torch.equal(tokens[0], written()) and torch.equal(tokens[1], tokens[0])
    assert [record.message for record in caplog.records] == ["decoding runs uncompiled: there is no compiler"]


def test_where_compiling_fails_one_line_says_so(monkeypatch, caplog):
    def fail(*arguments):
        raise TorchDynamoException("no such operator\nand many lines")

    monkeypatch.setattr("sleeptrain.model.compile_blocks.missing_compiler", lambda: None)
    monkeypatch.setattr("torch.compile", lambda function, **options: fail)
    with caplog.at_level(logging.WARNING, "sleeptrain"):
        assert torch.equal(written(compiled=True), written())
    [record] = caplog.records
    assert record.message == (
        "decoding runs uncompiled: torch.compile cannot compile it (TorchDynamoException: no such operator)"
    )


def written(dtype=torch.float64, **options):
    """Tokens that two rows write after three."""
    session = SleepSession(toy.model(dtype=dtype), EVERY, batch=2, **options)
    session.feed(torch.tensor([[1, 2, 3], [4, 5, 6]]))
    return torch.stack(list(session.generate(12)), 1)


@pytest.mark.slow
@pytest.mark.skipif(missing_compiler() is not None, reason="needs a C++ compiler")
def test_compiled_tokens_differ_by_rounding(caplog):
    m, tokens = toy.model(dtype=torch.float32), toy.batch(toy.windows(8, 3))[0]
    plain, compiled = SleepSession(m, EVERY, batch=2), SleepSession(m, EVERY, batch=2, compiled=True)
    for i in range(tokens.shape[1]):
        expected, actual = (session.feed(tokens[:, i : i + 1]) for session in (plain, compiled))
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert not caplog.records  # that it runs uncompiled
