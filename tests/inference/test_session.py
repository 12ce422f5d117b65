"""Inference sessions: equal to the trainer on the same windows, bounded memory, generation, and when a window sleeps."""

import pytest
import torch

from sleeptrain.inference import SleepSession
from sleeptrain.inference.sampling import Sampling
from sleeptrain.model.language import cross_entropy
from sleeptrain.program import Evict, Loop, Sleep
from tests.model import toy

CONTEXT = toy.windows(4, 4, targets=lambda i: i == 3, tail=3)
EVERY = toy.windows(4, 4, tail=3)


def feed(session, tokens, targets, layout, sizes, real=None):
    """Losses of tokens fed in pieces of `sizes`, repeated; tokens of windows with targets are fed as scored."""
    logits, start = [], 0
    while start < tokens.shape[1]:
        window = next(w for w in layout if w.start <= start < w.stop)
        stop = min(start + sizes[len(logits) % len(sizes)], window.stop)
        part = None if real is None else real[:, start:stop]
        logits.append(session.feed(tokens[:, start:stop], scored=window.targets, real=part))
        start = stop
    return cross_entropy(torch.cat(logits, 1), targets)


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("mode", ["hard", "sliding"])
@pytest.mark.parametrize("trigger", ["context", "every"])
@pytest.mark.parametrize(
    "loop",
    [{}, {"layers": (1, 3)}, {"layers": (1, 3), "feedback": "embeddings"}, {"feedback": "normed"}, {"feedback": "embeddings"}, {"feedback": "gated"}],
    ids=lambda loop: ",".join(map(str, loop.values())) or "all",
)  # fmt: skip
def test_equals_the_trainer(passes, mode, trigger, loop):
    layout = CONTEXT if trigger == "context" else EVERY
    sleep = Sleep(window=4, loop=Loop(trigger=trigger, **loop), evict=Evict(mode))
    m = toy.model(gated=sleep.gated)
    tokens, targets = toy.batch(layout)
    expected = toy.forward(m, sleep, layout, tokens, targets, passes)
    for sizes in ([1], [3, 1, 2]):
        session = SleepSession(m, sleep, batch=2, passes=passes)
        nll = feed(session, tokens, targets, layout, sizes)
        torch.testing.assert_close(nll, expected.nll, rtol=0, atol=1e-10)
        torch.testing.assert_close(
            session.state()["layers.1.fast"], expected.state["layers.1.fast"], rtol=0, atol=1e-10
        )


@pytest.mark.parametrize("mode", ["hard", "sliding"])
def test_equals_the_trainer_without_conv_carry(mode):
    m, sleep = toy.model(), Sleep(window=4, loop=Loop(trigger="every"), evict=Evict(mode, conv_carry=False))
    tokens, targets = toy.batch(EVERY)
    expected = toy.forward(m, sleep, EVERY, tokens, targets, 3)
    nll = feed(SleepSession(m, sleep, batch=2, passes=3), tokens, targets, EVERY, [1])
    torch.testing.assert_close(nll, expected.nll, rtol=0, atol=1e-10)


def test_equals_the_trainer_on_padded_rows():
    m, sleep, layout = toy.model(), Sleep(window=4), CONTEXT
    tokens, targets = toy.batch(layout)
    real = torch.ones_like(tokens, dtype=torch.bool)
    real[0, :6] = False
    expected = toy.forward(m, sleep, layout, tokens, targets, 3, valid=real)
    nll = feed(SleepSession(m, sleep, batch=2, passes=3), tokens, targets, layout, [2], real)
    torch.testing.assert_close(nll, expected.nll, rtol=0, atol=1e-10)


@pytest.mark.parametrize("loop", [Loop(trigger="every"), Loop(trigger="context", layers=(0, 2))])
def test_a_session_continues_from_the_state_of_another(loop):
    m, sleep = toy.model(), Sleep(window=4, passes=2, loop=loop, evict=Evict("sliding"))
    tokens, _ = toy.batch(EVERY)
    whole = SleepSession(m, sleep, batch=2)
    whole.feed(tokens[:, :6])
    other = SleepSession(m, sleep, batch=2)
    other.load_state(whole.state())
    assert torch.equal(whole.feed(tokens[:, 6:]), other.feed(tokens[:, 6:]))
    with pytest.raises(ValueError, match="belongs to another model or sleep section"):
        SleepSession(m, Sleep(window=5), batch=2).load_state(whole.state())


def test_memory_is_bounded():
    m, sleep = toy.model(), Sleep(window=4, passes=2, loop=Loop(trigger="every"), evict=Evict("sliding"))
    session, sizes = SleepSession(m, sleep), []
    for step in range(40):
        session.feed(torch.tensor([[step % toy.VOCAB]]))
        sizes.append(session.state().nbytes())
    assert max(sizes[20:]) <= max(sizes[:12])
    for leaf in session.state().spec:
        held = session.state()[leaf.name].shape[1:]
        assert all(a <= b for a, b in zip(held, leaf.shape, strict=True)), leaf.name


def test_greedy_and_sampled_generation_are_repeatable():
    m, sleep = toy.model(), Sleep(window=4, passes=2, loop=Loop(trigger="every"))

    def write(sampling, **options):
        session = SleepSession(m, sleep, batch=2)
        session.feed(torch.tensor([[1, 2, 3], [4, 5, 6]]))
        return torch.stack(list(session.generate(9, sampling, **options)), 1)

    greedy = write(Sampling())
    by_hand = SleepSession(m, sleep, batch=2)
    logits = by_hand.feed(torch.tensor([[1, 2, 3], [4, 5, 6]]))
    for i in range(9):
        assert torch.equal(logits[:, -1].argmax(-1), greedy[:, i])
        logits = by_hand.feed(greedy[:, i : i + 1], scored=True)
    hot = Sampling(temperature=2.0, seed=3)
    assert torch.equal(write(hot), write(hot)) and not torch.equal(write(hot), write(Sampling(temperature=2.0, seed=4)))
    assert torch.equal(write(Sampling(temperature=1.0, top_k=1)), greedy)
    assert write(Sampling(), stop=int(greedy[0, 0])).shape[1] >= 1


def test_sampling_probabilities_of_top_k_top_p_and_min_p():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert Sampling(1.0, top_k=2).probabilities(logits).tolist()[0] == pytest.approx([0.625, 0.375, 0, 0])
    assert Sampling(1.0, top_p=0.75).probabilities(logits).tolist()[0] == pytest.approx([0.625, 0.375, 0, 0])
    assert Sampling(1.0, top_p=1.0).probabilities(logits).tolist()[0] == pytest.approx([0.5, 0.3, 0.15, 0.05])
    assert Sampling(1.0, min_p=0.25).probabilities(logits).tolist()[0] == pytest.approx(
        [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]
    )
    assert Sampling(1.0, min_p=1.0).probabilities(logits).tolist()[0] == pytest.approx([1, 0, 0, 0])
    for wrong in ({"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_k": -1}, {"min_p": 1.5}):
        with pytest.raises(ValueError, match="needs temperature >= 0"):
            Sampling(**wrong)


def test_tokens_outside_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match=r"must be in 0\.\.10; got 3\.\.11"):
        SleepSession(toy.model(), Sleep(window=4)).feed(torch.tensor([[3, 11]]))


def test_windows_of_a_context_session_sleep_only_when_full_and_unscored():
    m, sleep, calls = toy.model(), Sleep(window=4, passes=3), []
    session = SleepSession(m, sleep)
    m.layers.register_forward_hook(lambda *_: calls.append(1))

    def passes(tokens, scored):
        calls.clear()
        session.feed(torch.tensor([tokens]), scored=scored)
        return len(calls)

    assert passes([1, 2, 3], False) == 3  # one pass: prelude, loop and coda
    assert passes([4, 5], False) == 3 + 2 + 3  # the window was filled, had two more passes, and the next one began
    assert passes([1, 2, 3, 4], True) == 3 + 3  # scored: evicted without sleep
