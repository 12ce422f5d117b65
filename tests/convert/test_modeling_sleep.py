"""The sleep-aware class of an exported folder equals SleepSession: logits, generation, batches, beams."""

import pytest
import torch

from sleeptrain.inference import SleepSession
from sleeptrain.program import Evict, Loop, Sleep
from tests.convert.toys import random_tokens, small, theirs

pytestmark = pytest.mark.engines
LOOPS = {
    "all": {},
    "range": {"layers": (1, 3)},
    "first blocks": {"layers": (0, 2)},
    "normed": {"feedback": "normed"},
    "embeddings": {"feedback": "embeddings"},
    "embeddings of a range": {"layers": (1, 3), "feedback": "embeddings"},
    "gated": {"feedback": "gated"},
}


def pair(sleep, layers="GAGA", **changes):
    """The same model as a sleeping class of transformers, and ours."""
    from sleeptrain.convert.modeling_sleep import SleepForCausalLM

    ours = small(layers, gated=sleep.gated, std=0.05, **changes)
    return theirs(ours, sleep, SleepForCausalLM), ours


@pytest.mark.parametrize("mode", ["hard", "sliding"])
@pytest.mark.parametrize("trigger", ["context", "every"])
@pytest.mark.parametrize("loop", LOOPS)
def test_logits_and_fast_weights_equal_a_session(loop, trigger, mode):
    sleep = Sleep(window=8, loop=Loop(trigger=trigger, **LOOPS[loop]), evict=Evict(mode))
    other, ours = pair(sleep)
    tokens = random_tokens(2, 3 * 8 + 5)
    for passes in (1, 2, 4) if loop in ("all", "range") else (4,):
        session = SleepSession(ours, sleep, batch=2, passes=passes)
        expected = session.feed(tokens)
        cache = other.sleep(tokens[:, :11], passes)
        rest = [
            other(tokens[:, at : at + size], past_key_values=cache).logits for at, size in ((11, 1), (12, 9), (21, 8))
        ]
        torch.testing.assert_close(torch.cat(rest, 1), expected[:, 11:], rtol=0, atol=1e-4)
        fast = session.state()["layers.0.fast"]
        torch.testing.assert_close(cache.layers[0].recurrent_states[0], fast, rtol=0, atol=1e-4)


@pytest.mark.parametrize("trigger", ["context", "every"])
@pytest.mark.parametrize("mode", ["hard", "sliding"])
@pytest.mark.parametrize("layers", ["GAGA", "GG", "AAG"])
def test_generation_over_several_windows_equals_a_session(layers, mode, trigger):
    sleep = Sleep(window=8, passes=3, loop=Loop(trigger=trigger, layers=(0, 2)), evict=Evict(mode, conv_carry=False))
    other, ours = pair(sleep, layers)
    tokens = random_tokens(2, 21)
    for passes in (None, 1):
        session = SleepSession(ours, sleep, batch=2, passes=passes)
        session.feed(tokens)
        expected = torch.stack(list(session.generate(30)), 1)
        assert torch.equal(other.generate(tokens, max_new_tokens=30, do_sample=False, passes=passes)[:, 21:], expected)


def test_rows_of_several_lengths_equal_single_rows():
    sleep = Sleep(window=8, passes=2, loop=Loop(trigger="every"))
    other, _ = pair(sleep)
    rows = [random_tokens(1, length, seed=length) for length in (21, 5, 21, 16)]
    padded = torch.cat([torch.nn.functional.pad(row, (21 - row.shape[1], 0), value=100) for row in rows])
    mask = torch.cat([torch.nn.functional.pad(torch.ones_like(row), (21 - row.shape[1], 0)) for row in rows])
    found = other.generate(padded, attention_mask=mask, max_new_tokens=12, do_sample=False)
    for row, out in zip(rows, found, strict=True):
        assert torch.equal(out[21:], other.generate(row, max_new_tokens=12, do_sample=False)[0, row.shape[1] :])
    with pytest.raises(ValueError, match="must be padded on the left"):
        other.generate(padded, attention_mask=mask.flip(1), max_new_tokens=2)
    with pytest.raises(ValueError, match="reads rows without padding"):
        other(padded, attention_mask=mask)


def test_a_cache_is_continued_and_prefill_in_chunks_changes_nothing():
    sleep = Sleep(window=8, passes=2, loop=Loop(trigger="every"), evict=Evict("sliding"))
    other, _ = pair(sleep)
    tokens = random_tokens(2, 30)
    expected = other.generate(tokens, max_new_tokens=10, do_sample=False)
    cache = other.sleep(tokens[:, :19])
    assert cache.get_seq_length() == 19
    assert torch.equal(other.generate(tokens, past_key_values=cache, max_new_tokens=10, do_sample=False), expected)
    chunked = other.generate(tokens, prefill_chunk_size=7, max_new_tokens=10, do_sample=False)
    assert torch.equal(chunked, expected)
    with pytest.raises(ValueError, match="a token that the cache has not read"):
        other.generate(tokens[:, :19], past_key_values=cache)
    with pytest.raises(ValueError, match="cannot generate with use_cache=False"):
        other.generate(tokens, use_cache=False)
    with pytest.raises(ValueError, match="must be at least 1"):
        other.generate(tokens, passes=0)


def test_the_score_of_a_beam_is_the_likelihood_of_its_tokens():
    sleep = Sleep(window=8, passes=2, loop=Loop(trigger="every"))
    other, _ = pair(sleep)
    tokens = random_tokens(1, 13)
    found = other.generate(
        tokens, num_beams=3, num_return_sequences=3, max_new_tokens=12, do_sample=False, length_penalty=0.0,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    for sequence, score in zip(found.sequences, found.sequences_scores, strict=True):
        log_probs = other(sequence[None, :-1]).logits[0, 12:].log_softmax(-1)
        torch.testing.assert_close(log_probs.gather(1, sequence[13:, None]).sum(), score, rtol=0, atol=1e-3)


def test_memory_is_that_of_one_window():
    sleep = Sleep(window=8, passes=2, loop=Loop(trigger="every"), evict=Evict("sliding"))
    other, _ = pair(sleep)
    cache = other.sleep(random_tokens(1, 100))
    assert cache.fill == 4 and cache.layers[1].keys.shape[2] == 7 + 4
    assert cache.layers[1].keys.untyped_storage().nbytes() <= 2 * 15 * 16 * 4
