"""Rows of unequal lengths: each computes what it computes alone; rows join and leave; the number of passes changes."""

import pytest
import torch

from sleeptrain.inference import SleepSession
from sleeptrain.model.config import AttentionConfig
from sleeptrain.program import Evict, Loop, Sleep
from tests.model import toy

LENGTHS = (13, 3, 8, 0, 1, 9)
"""In windows of 4: several, less than one, whole ones, nothing, one token, one more than whole ones."""
WRITTEN = (2, 9, 5, 6, 4, 0)
"""Tokens that each row writes after its prompt, so that rows end their windows at different times."""


def rows(seed=5):
    generator = torch.Generator().manual_seed(seed)
    longest = max(map(sum, zip(LENGTHS, WRITTEN, strict=True)))
    return torch.randint(0, toy.VOCAB, (len(LENGTHS), longest), generator=generator)


def read_batch(session, tokens):
    """Prompts in two calls, then single tokens as scored ones; the logits of all tokens that each row read."""
    seen = [[] for _ in LENGTHS]

    def read(starts, stops, scored):
        counts = [stop - start for start, stop in zip(starts, stops, strict=True)]
        part = torch.full((len(counts), max(counts)), toy.VOCAB + 5)  # what is not read may be anything
        for row, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            part[row, : stop - start] = tokens[row, start:stop]
        logits = session.feed(part, lengths=torch.tensor(counts), scored=scored)
        for row, count in enumerate(counts):
            seen[row].append(logits[row, :count])
            assert not logits[row, count:].any()

    half = [length // 2 for length in LENGTHS]
    read([0] * len(half), half, False)
    read(half, LENGTHS, False)
    for i in range(max(WRITTEN)):
        at = [length + min(i, count) for length, count in zip(LENGTHS, WRITTEN, strict=True)]
        read(at, [a + (i < count) for a, count in zip(at, WRITTEN, strict=True)], True)
    return [torch.cat(logits) for logits in seen]


def read_alone(model, sleep, tokens, row, **options):
    session = SleepSession(model, sleep, **options)
    prompt, end = LENGTHS[row], LENGTHS[row] + WRITTEN[row]
    logits = [session.feed(tokens[row : row + 1, :prompt])]
    logits += [session.feed(tokens[row : row + 1, i : i + 1], scored=True) for i in range(prompt, end)]
    return torch.cat(logits, 1)[0], session


@pytest.mark.parametrize("passes", [1, 2, 4])
@pytest.mark.parametrize("mode", ["hard", "sliding"])
@pytest.mark.parametrize("trigger", ["context", "every"])
def test_rows_of_unequal_lengths_equal_rows_alone(passes, mode, trigger):
    compare(Sleep(window=4, passes=passes, loop=Loop(trigger=trigger), evict=Evict(mode)))


@pytest.mark.parametrize("mode", ["hard", "sliding"])
@pytest.mark.parametrize(
    ("loop", "evict", "shape"),
    [
        ({"layers": (1, 3), "trigger": "context"}, {}, {}),
        ({"layers": (1, 3), "trigger": "every", "feedback": "gated"}, {}, {}),
        ({"trigger": "every", "feedback": "embeddings"}, {"conv_carry": False}, {}),
        ({"trigger": "context"}, {}, {"attention": AttentionConfig(4, 2, 4, 0.5, window=3)}),
    ],
    ids=["coda", "gated", "no-tail", "local-attention"],
)  # fmt: skip
def test_other_options(mode, loop, evict, shape):
    compare(Sleep(window=4, passes=3, loop=Loop(**loop), evict=Evict(mode, **evict)), **shape)


def compare(sleep, dtype=torch.float64, tolerance=1e-12, **shape):
    m = toy.model(dtype=dtype, gated=sleep.gated, **shape)
    tokens = rows()
    batch = SleepSession(m, sleep, batch=len(LENGTHS))
    found = read_batch(batch, tokens)
    for row in range(len(LENGTHS)):
        expected, alone = read_alone(m, sleep, tokens, row)
        torch.testing.assert_close(found[row], expected, rtol=0, atol=tolerance)
        assert int(batch.lengths[row]) == int(alone.lengths) == LENGTHS[row] + WRITTEN[row]
        part, single = batch.rows([row]), alone.state()
        for leaf in single.spec:
            assert part[leaf.name].shape == single[leaf.name].shape, leaf.name
            torch.testing.assert_close(part[leaf.name], single[leaf.name], rtol=0, atol=tolerance, msg=leaf.name)


@pytest.mark.parametrize("mode", ["hard", "sliding"])
def test_in_float32_rows_differ_by_rounding_only(mode):
    compare(Sleep(window=4, passes=2, loop=Loop(trigger="every"), evict=Evict(mode)), torch.float32, 2e-5)


@pytest.mark.parametrize("mode", ["hard", "sliding"])
def test_rows_join_and_leave(mode):
    m = toy.model()
    sleep = Sleep(window=4, passes=2, loop=Loop(trigger="every"), evict=Evict(mode))
    tokens = rows()
    expected = [SleepSession(m, sleep).feed(tokens[i : i + 1])[0] for i in range(4)]
    session = SleepSession(m, sleep, batch=2)
    session.prefill(tokens[:2, :9], lengths=torch.tensor([9, 2]))
    late = SleepSession(m, sleep, batch=2)
    late.prefill(tokens[2:4, :6])
    session.append(late.rows([1]))  # rows 0, 1, 3
    session.keep([2, 0])  # rows 3, 0
    session.append(late.rows([0]))  # rows 3, 0, 2
    at = {3: 6, 0: 9, 2: 6}
    for i in range(6):
        step = torch.stack([tokens[row, start + i] for row, start in at.items()])
        logits = session.feed(step[:, None])[:, 0]
        for found, (row, start) in zip(logits, at.items(), strict=True):
            torch.testing.assert_close(found, expected[row][start + i], rtol=0, atol=1e-12)
    session.keep([])
    assert session.feed(torch.zeros(0, 1, dtype=torch.int64)).shape == (0, 1, toy.VOCAB)
    session.append(late.rows([0]))
    assert torch.equal(session.logits, late.logits[:1])


def test_passes_change_between_windows():
    m, sleep = toy.model(), Sleep(window=4, passes=1, loop=Loop(trigger="every"))
    tokens, _ = toy.batch(toy.windows(4, 4))
    changing = SleepSession(m, sleep, batch=2)
    constant = SleepSession(m, sleep, batch=2, passes=3)
    changing.passes = 3
    torch.testing.assert_close(changing.feed(tokens[:, :9]), constant.feed(tokens[:, :9]))
    changing.passes = 1
    assert torch.equal(changing.feed(tokens[:, 9:12]), constant.feed(tokens[:, 9:12]))
    assert not torch.allclose(changing.feed(tokens[:, 12:]), constant.feed(tokens[:, 12:]))
    with pytest.raises(ValueError, match="passes = 0 must be at least 1"):
        changing.passes = 0


def test_prefill_computes_the_logits_of_the_last_tokens_only():
    m, sleep = toy.model(), Sleep(window=4, passes=2, loop=Loop(trigger="every"))
    tokens, computed = rows(), []
    expected = SleepSession(m, sleep, batch=len(LENGTHS)).feed(tokens, lengths=torch.tensor(LENGTHS))
    m.head.register_forward_hook(lambda module, inputs, output: computed.append(output.shape))
    session = SleepSession(m, sleep, batch=len(LENGTHS))
    last = session.prefill(tokens, lengths=torch.tensor(LENGTHS))
    assert all(shape[1] == 1 for shape in computed)
    for row, length in enumerate(LENGTHS):
        torch.testing.assert_close(last[row], expected[row, length - 1] if length else torch.zeros_like(last[row]))


def test_a_row_that_has_ended_reads_nothing_more():
    m, sleep = toy.model(), Sleep(window=4, passes=2, loop=Loop(trigger="every"))
    session = SleepSession(m, sleep, batch=2)
    session.prefill(torch.tensor([[1, 2, 3], [4, 5, 6]]))
    first = session.logits.argmax(-1)
    assert first[0] != first[1]
    written = torch.stack(list(session.generate(6, stop=int(first[0]))), 1)
    assert written[0].tolist() == [int(first[0])] * written.shape[1]
    assert int(session.lengths[0]) == 3 and int(session.lengths[1]) > 3


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        ([[1, 2]], {}, r"must be \[2, time\] for the 2 rows of the session, not \[1, 2\]"),
        ([[1], [2]], {"lengths": torch.tensor([2, 1])}, r"lengths must be 2 numbers from 0 to 1, not \[2, 1\]"),
        ([[1], [2]], {"lengths": torch.tensor([1])}, r"lengths must be 2 numbers from 0 to 1, not \[1\]"),
        ([[1], [2]], {"real": torch.ones(2, 2, dtype=torch.bool)}, r"not \[2, 1\] and \[2, 2\]"),
    ],
)
def test_wrong_shapes_are_refused(tokens, options, message):
    with pytest.raises(ValueError, match=message):
        SleepSession(toy.model(), Sleep(window=4), batch=2).feed(torch.tensor(tokens), **options)
