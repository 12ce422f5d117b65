"""Scores and continuations of an exported model equal those of SleepSession, each text alone, whatever is in the batch beside it."""

from __future__ import annotations

import pytest
import torch

from sleeptrain.evaluate import continuations
from sleeptrain.evaluate.continuations import ScoredText, continued, likelihoods
from sleeptrain.inference import SleepSession
from sleeptrain.program import Evict, Loop, Sleep
from tests.convert.toys import random_tokens, small, theirs

pytestmark = pytest.mark.engines
SLEEPS = {
    "every": Sleep(window=8, passes=3, loop=Loop(trigger="every")),
    "context": Sleep(window=8, passes=3, loop=Loop((0, 2), trigger="context"), evict=Evict(conv_carry=False)),
    "sliding": Sleep(window=8, passes=3, loop=Loop(trigger="context"), evict=Evict("sliding")),
}


def pair(sleep):
    from sleeptrain.convert.modeling_sleep import SleepForCausalLM

    ours = small("GAGA", std=0.05)
    return theirs(ours, sleep, SleepForCausalLM), ours


def row(length, seed):
    return tuple(random_tokens(1, length, seed)[0].tolist())


def asked():
    """Contexts that end before, at and after window ends, some with two continuations, of up to three windows."""
    lengths = {1: (1, 18), 7: (2,), 8: (9, 2), 15: (1, 3), 16: (10,), 17: (1,)}
    return [ScoredText(row(at, at), row(length, 100 + length)) for at, some in lengths.items() for length in some]


def alone(ours, sleep, one, passes):
    """The score that a session gives: the context, then the continuation as targets."""
    session = SleepSession(ours, sleep, passes=passes)
    logits = session.prefill(torch.tensor([one.context]))
    if one.tokens[1:]:
        logits = torch.cat([logits, session.feed(torch.tensor([one.tokens[:-1]]), scored=True)[0]])
    log, wanted = logits.log_softmax(-1), torch.tensor(one.tokens)
    return float(log.gather(1, wanted[:, None]).sum()), bool((log.argmax(-1) == wanted).all())


@pytest.mark.parametrize("case", SLEEPS)
def test_a_likelihood_is_that_of_a_session(case, monkeypatch):
    monkeypatch.setattr(continuations, "LOGITS", 5 * 101 * 3)
    sleep, questions = SLEEPS[case], asked()
    other, ours = pair(sleep)
    best = continued(other, [questions[0].context], 1, max_new_tokens=3)[0]
    questions.append(ScoredText(questions[0].context, tuple(best)))
    for passes, rows in ((3, 5), (1, 20)) if case == "every" else ((3, 5),):
        other.config.sleep["passes"] = passes
        counts = []
        found = likelihoods(other, questions, rows, counts.append)
        assert sum(counts) == len(questions) and max(counts) <= rows
        for one, score in zip(questions, found, strict=True):
            log, greedy = alone(ours, sleep, one, passes)
            assert score.log == pytest.approx(log, abs=1e-4) and score.greedy == greedy
        assert found[-1].greedy


def test_a_context_is_read_once_for_all_its_continuations(monkeypatch):
    other, _ = pair(SLEEPS["every"])
    read, forward = [], other.forward
    monkeypatch.setattr(
        other, "forward", lambda tokens, **rest: (read.append(tokens.numel()), forward(tokens, **rest))[1]
    )
    context = row(80, 1)
    likelihoods(other, [ScoredText(context, (i,)) for i in range(4)], 4)
    assert sum(read) == 72 + 4 * 8


@pytest.mark.parametrize("case", SLEEPS)
def test_texts_of_several_lengths_are_continued_as_a_session_does(case):
    sleep = SLEEPS[case]
    other, ours = pair(sleep)
    texts = [row(length, length) for length in (17, 5, 17, 8)]
    found = continued(other, texts, 3, max_new_tokens=9, do_sample=False)
    for text, tokens in zip(texts, found, strict=True):
        session = SleepSession(ours, sleep)
        session.feed(torch.tensor([text]))
        assert tokens == [int(token) for token in session.generate(9)]
    other.generation_config.eos_token_id = found[0][2]
    shorter = continued(other, texts[:1], 4, max_new_tokens=9, do_sample=False)
    assert shorter == [found[0][: found[0].index(found[0][2])]]
