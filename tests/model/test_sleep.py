"""The eager interpreter: the invariants of sleep, and losses and gradients against the float64 oracle."""

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F

from sleeptrain.model.config import AttentionConfig, DeltaNetConfig
from sleeptrain.model.language import IGNORED
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.model.sleep import RecomputeWrappers, run
from sleeptrain.model.stack import call_directly
from sleeptrain.program import Evict, Gradient, Loop, Sleep, Window, compile
from tests.model import toy
from tests.model.oracle import Oracle

close = {"rtol": 0, "atol": 1e-10}


def gradients(m, loss):
    grads = torch.autograd.grad(loss, list(m.parameters()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(m.named_parameters(), grads, strict=True)}


def compare_with_oracle(m, sleep, layout, passes, rows=1):
    """Compare losses and gradients with the oracle; returns the oracle's gradients."""
    tokens, targets = toy.batch(layout, rows)
    result = toy.forward(m, sleep, layout, tokens, targets, passes)
    oracles = [Oracle(dict(m.named_parameters()), m.config, sleep, passes) for _ in range(rows)]
    oracle_loss = sum(oracle.loss(tokens[r], targets[r], layout) for r, oracle in enumerate(oracles))
    torch.testing.assert_close(
        result.nll.double().sum(), oracle_loss, rtol=0, atol=1e-6
    )  # losses are returned in float32
    ours, theirs = gradients(m, result.nll.sum()), gradients(m, oracle_loss)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-9, msg=lambda s, n=name: f"{n}: {s}")
    measured = result.adjoint.squares(torch.device("cpu"))
    crossing = torch.tensor([oracle.squares for oracle in oracles], dtype=torch.float64).sum(0)
    torch.testing.assert_close(measured[: len(crossing)], crossing, rtol=1e-9, atol=1e-15)
    return theirs


CONTEXT = toy.windows(4, 3, targets=lambda i: i == 2, tail=3)
EVERY = toy.windows(4, 3)
CLIP = 0.1
"""Clips the gradients of some heads in the cases below, and not those of others."""

CASES = {
    "plain": (Sleep(window=4), CONTEXT, 1),
    "context": (Sleep(window=4), CONTEXT, 3),
    "every": (Sleep(window=4, loop=Loop(trigger="every")), EVERY, 3),
    "every, targets in the last window only": (Sleep(window=4, loop=Loop(trigger="every")), CONTEXT, 2),
    "normed": (Sleep(window=4, loop=Loop(feedback="normed")), CONTEXT, 3),
    "gated": (Sleep(window=4, loop=Loop(feedback="gated")), CONTEXT, 3),
    "gated, sliding, every, coda": (
        Sleep(window=4, loop=Loop(layers=(0, 3), feedback="gated", trigger="every"), evict=Evict("sliding")), EVERY, 3),
    "clipped": (Sleep(window=4, loop=Loop(trigger="every"), gradient=Gradient(clip_state=CLIP)), EVERY, 3),
    "clipped, sliding, last two passes": (
        Sleep(window=4, loop=Loop(trigger="every"), evict=Evict("sliding"), gradient=Gradient(2, clip_state=CLIP)), EVERY, 3),
    "embeddings": (Sleep(window=4, loop=Loop(feedback="embeddings")), CONTEXT, 3),
    "range, context": (Sleep(window=4, loop=Loop(layers=(1, 3))), CONTEXT, 3),
    "range, every": (Sleep(window=4, loop=Loop(layers=(1, 3), trigger="every")), EVERY, 3),
    "range, embeddings": (Sleep(window=4, loop=Loop(layers=(1, 3), feedback="embeddings", trigger="every")), EVERY, 3),
    "range to the top, normed": (Sleep(window=4, loop=Loop(layers=(2, 4), feedback="normed")), CONTEXT, 3),
    "range from the bottom": (Sleep(window=4, loop=Loop(layers=(0, 2))), CONTEXT, 2),
    "sliding, context": (Sleep(window=4, evict=Evict("sliding")), CONTEXT, 2),
    "sliding, every": (Sleep(window=4, loop=Loop(trigger="every"), evict=Evict("sliding")), EVERY, 3),
    "sliding, range, every": (Sleep(window=4, loop=Loop(layers=(1, 3), trigger="every"), evict=Evict("sliding")), EVERY, 2),
    "strict": (Sleep(window=4, evict=Evict("hard", conv_carry=False)), CONTEXT, 3),
    "strict, sliding": (Sleep(window=4, loop=Loop(trigger="every"), evict=Evict("sliding", conv_carry=False)), EVERY, 2),
    "last pass only": (Sleep(window=4, gradient=Gradient(passes=1)), CONTEXT, 3),
    "last two passes, every": (Sleep(window=4, loop=Loop(trigger="every"), gradient=Gradient(passes=2)), EVERY, 3),
    "last two passes, range, embeddings": (
        Sleep(window=4, loop=Loop(layers=(1, 3), feedback="embeddings", trigger="every"), gradient=Gradient(passes=2)), EVERY, 3),
    "horizon of one window": (Sleep(window=4, loop=Loop(trigger="every"), gradient=Gradient(windows=1)), EVERY, 2),
    "horizon of two windows, sliding": (
        Sleep(window=4, loop=Loop(trigger="every"), evict=Evict("sliding"), gradient=Gradient(windows=2)), EVERY, 2),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_equal_the_unrolled_oracle(case):
    sleep, layout, passes = CASES[case]
    grads = compare_with_oracle(toy.model(gated=sleep.gated), sleep, layout, passes)
    assert grads["layers.1.mixer.k.weight"].abs().max() > 1e-6


def test_two_rows_and_a_tied_head_equal_the_oracle():
    compare_with_oracle(toy.model(tie=True), CASES["context"][0], CONTEXT, 2, rows=2)


def test_scaled_branches_equal_the_oracle():
    compare_with_oracle(toy.model(residual_scale=0.3), *CASES["every"])


def test_clipping_shortens_some_gradients_of_S_and_not_others():
    m, (sleep, layout, passes) = toy.model(), CASES["clipped"]
    tokens, targets = toy.batch(layout, rows=1)
    limit, lengths = CLIP * int((targets != IGNORED).sum()), []
    program = compile(sleep, layout, len(m.layers), passes)
    result = run(m, MicroBatch(tokens, targets, m.zero_state(sleep, 1)), program, sleep)
    at_boundary = result.adjoint.at_boundary

    def spy(window, d):
        clipped = at_boundary(window, d)
        lengths.extend((d[name].norm(dim=(-2, -1)), clipped[name].norm(dim=(-2, -1))) for name in d)
        return clipped

    result.adjoint.at_boundary = spy
    result.nll.sum().backward()
    before, after = (torch.cat([pair[i].flatten() for pair in lengths]) for i in (0, 1))
    torch.testing.assert_close(after, before.clamp(max=limit))
    assert 0 < (before > limit).sum() < len(before)


def test_blocks_that_cannot_be_exported_equal_the_oracle():
    wide = DeltaNetConfig(key_heads=2, value_heads=4, head_dim=4, negative_eigenvalues=True)
    compare_with_oracle(toy.model(norm="sandwich", deltanet=wide), *CASES["context"])
    compare_with_oracle(toy.model(norm="sandwich", residual_scale=0.3), *CASES["context"])
    ungated = AttentionConfig(heads=2, kv_heads=2, head_dim=6, rotary=1.0, gate=False)
    compare_with_oracle(toy.model("AG", attention=ungated), *CASES["every"])
    compare_with_oracle(toy.model("AGA", **toy.OURO), *CASES["normed"])


def test_truncated_gradients_do_not_change_losses():
    m, (tokens, targets) = toy.model(), toy.batch(EVERY)
    every = Loop(trigger="every")
    variants = [Gradient(), Gradient(passes=1), Gradient(passes=2), Gradient(windows=1), Gradient(windows=2)]
    results = [toy.forward(m, Sleep(window=4, loop=every, gradient=g), EVERY, tokens, targets, 3) for g in variants]
    for result in results[1:]:
        assert torch.equal(result.nll, results[0].nll)
    name = "layers.1.mixer.v.weight"
    truncated = [gradients(m, r.nll.sum())[name] for r in results]
    for a, b in itertools.combinations(range(len(truncated)), 2):
        assert not torch.allclose(truncated[a], truncated[b], rtol=1e-3), (variants[a], variants[b])


def test_one_pass_is_the_plain_chunked_hybrid():
    m, (tokens, targets) = toy.model(), toy.batch(EVERY)
    context = toy.forward(m, Sleep(window=4), EVERY, tokens, targets, 1)
    every = toy.forward(m, Sleep(window=4, loop=Loop(trigger="every", feedback="normed")), EVERY, tokens, targets, 1)
    assert torch.equal(context.nll, every.nll)
    one = Sleep(window=12)
    unwindowed = toy.forward(m, one, [Window(0, 12, True)], tokens, targets, 1)
    deltanet_only = toy.model("G")
    windowed = toy.forward(deltanet_only, Sleep(window=4), EVERY, tokens, targets, 1)
    whole = toy.forward(deltanet_only, one, [Window(0, 12, True)], tokens, targets, 1)
    torch.testing.assert_close(windowed.nll, whole.nll, **close)
    torch.testing.assert_close(windowed.state["layers.0.fast"], whole.state["layers.0.fast"], **close)
    assert not torch.allclose(unwindowed.nll, context.nll)  # attention ends at the window


def test_one_pass_under_sliding_eviction_is_sliding_window_attention():
    m, (tokens, targets) = toy.model("AG"), toy.batch(EVERY)
    sliding = toy.forward(m, Sleep(window=4, evict=Evict("sliding")), EVERY, tokens, targets, 1)
    banded = dataclasses.replace(m.config, attention=dataclasses.replace(m.config.attention, window=4))
    whole = toy.model("AG", attention=banded.attention)
    whole.load_state_dict(m.state_dict())
    at_once = toy.forward(whole, Sleep(window=12), [Window(0, 12, True)], tokens, targets, 1)
    torch.testing.assert_close(sliding.nll, at_once.nll, **close)


@pytest.mark.parametrize("passes", [2, 3])
def test_sleep_on_embeddings_is_one_forward_over_the_repeated_stream(passes):
    """Passes over a window equal one pass over N copies of the window in a row, each copy with its own attention."""
    m, (tokens, targets) = toy.model(), toy.batch(CONTEXT)
    slept = toy.forward(m, Sleep(window=4, loop=Loop(feedback="embeddings")), CONTEXT, tokens, targets, passes)
    parts = [p for w in CONTEXT for p in [(w.start, w.stop)] * (1 if w.targets else passes)]
    stream = torch.cat([tokens[:, a:b] for a, b in parts], 1)
    stream_targets = torch.cat([targets[:, a:b] for a, b in parts], 1)
    ends = list(itertools.accumulate(b - a for a, b in parts))
    layout = [Window(s - (b - a), s, True) for s, (a, b) in zip(ends, parts, strict=True)]
    once = toy.forward(m, Sleep(window=4), layout, stream, stream_targets, 1)
    torch.testing.assert_close(slept.nll[:, -3:], once.nll[:, -3:], **close)
    torch.testing.assert_close(slept.state["layers.1.fast"], once.state["layers.1.fast"], **close)


@pytest.mark.parametrize("carry", [True, False])
def test_an_evicted_window_affects_later_ones_only_through_the_state(carry):
    m, sleep = toy.model(), Sleep(window=4, evict=Evict("hard", conv_carry=carry))
    tokens, targets = toy.batch(CONTEXT)
    changed = tokens.clone()
    changed[:, 1] = (changed[:, 1] + 1) % toy.VOCAB
    first, rest = CONTEXT[:1], [Window(w.start - 4, w.stop - 4, w.targets) for w in CONTEXT[1:]]

    def after(stream):
        return toy.forward(m, sleep, first, stream[:, :4], targets[:, :4], 3).state

    def later(state):
        return toy.forward(m, sleep, rest, tokens[:, 4:], targets[:, 4:], 3, state=state).nll

    assert not torch.allclose(later(after(tokens)), later(after(changed)))
    end, other = after(tokens), after(changed)
    crossing = ("fast", "conv") if carry else ("fast",)
    frozen = other.replace({f.name: end[f.name] for f in end.spec if f.kind in crossing})
    assert torch.equal(later(end), later(frozen))
    if carry:  # the convolution tail crosses the window too
        partly = other.replace({f.name: end[f.name] for f in end.spec if f.kind == "fast"})
        assert not torch.equal(later(end), later(partly))


@pytest.mark.parametrize("make", [toy.model, toy.jet])
@pytest.mark.parametrize("mode", ["hard", "sliding"])
@pytest.mark.parametrize("trigger", ["context", "every"])
def test_padding_changes_nothing(make, mode, trigger):
    """One row of two is padded, on the left of the first window and on the right of the last."""
    m, sleep = make(), Sleep(window=6, evict=Evict(mode), loop=Loop(trigger=trigger))
    layout = [Window(0, 4, False), Window(4, 10, False), Window(10, 13, True)]
    tokens, targets = toy.batch(layout, rows=1)
    padded_layout = [Window(0, 6, False), Window(6, 12, False), Window(12, 18, True)]
    junk = torch.full((1, 2), 5), torch.full((1, 3), 7)
    wide = torch.cat([junk[0], tokens, junk[1]], 1)
    wide_targets = torch.cat([torch.full((1, 2), -100), targets, torch.full((1, 3), -100)], 1)
    valid = torch.tensor([[False] * 2 + [True] * 13 + [False] * 3])
    other_tokens, other_targets = toy.batch(padded_layout, rows=1, seed=3)
    both = toy.forward(
        m, sleep, padded_layout, torch.cat([wide, other_tokens]), torch.cat([wide_targets, other_targets]), 3,
        valid=torch.cat([valid, torch.ones_like(valid)]),
    )  # fmt: skip
    alone = toy.forward(m, sleep, layout, tokens, targets, 3)
    other = toy.forward(m, sleep, padded_layout, other_tokens, other_targets, 3)
    torch.testing.assert_close(both.nll[:1, 12:15], alone.nll[:, 10:], **close)
    torch.testing.assert_close(both.nll[1:], other.nll, **close)
    for leaf in alone.state.spec:
        if leaf.kind in ("fast", "conv"):
            torch.testing.assert_close(both.state[leaf.name][:1], alone.state[leaf.name], **close)
    ours, theirs = gradients(m, both.nll[:1].sum()), gradients(m, alone.nll.sum())
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], **close)


@pytest.mark.parametrize("mode", ["hard", "sliding"])
def test_padding_at_the_end_of_rows_is_no_mask_of_attention(mode, monkeypatch):
    """Under hard eviction no mask is made, and what tokens that are read give is that under a mask. A row ends in the first window."""
    m, sleep = toy.model(), Sleep(window=6, evict=Evict(mode), loop=Loop(trigger="every"))
    layout = [Window(0, 6, True), Window(6, 12, True)]
    tokens, targets = toy.batch(layout)
    valid = torch.arange(12) < torch.tensor([[10], [4]])
    targets[~valid] = -100
    program, masks, attend = compile(sleep, layout, len(m.layers), 2), [], F.scaled_dot_product_attention

    def recorded(*args, attn_mask=None, **options):
        masks.append(attn_mask)
        return attend(*args, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recorded)
    found = []
    for right_padded in (True, False):
        batch = MicroBatch(tokens, targets, m.zero_state(sleep, 2), valid, right_padded=right_padded)
        output = run(m, batch, program, sleep)
        fast = [
            t for leaf, t in zip(output.state.spec, output.state.flat(), strict=True) if leaf.kind in ("fast", "conv")
        ]
        found.append([output.nll, output.residual, *fast, *gradients(m, output.nll.sum()).values()])
        if mode == "hard":
            assert all((mask is None) is right_padded for mask in masks)
        masks.clear()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, **close, equal_nan=True)


def test_a_window_of_padding_does_not_change_the_state():
    m, sleep = toy.model(), Sleep(window=4)
    tokens, targets = toy.batch(CONTEXT)
    start = toy.forward(m, sleep, CONTEXT[:1], tokens[:, :4], targets[:, :4], 2).state
    valid = torch.zeros(2, 4, dtype=torch.bool)
    after = toy.forward(m, sleep, [Window(0, 4, False)], tokens[:, 4:8], targets[:, 4:8], 2, state=start, valid=valid)
    for leaf in start.spec:
        assert torch.equal(after.state[leaf.name], start[leaf.name]), leaf.name


def test_residuals_and_predictions():
    m, (tokens, targets) = toy.model(), toy.batch(CONTEXT)
    result = toy.forward(m, Sleep(window=4), CONTEXT, tokens, targets, 3, predict="tokens")
    assert result.residual.shape == (4, len(tokens)) and (result.residual > 0).all()
    assert (result.predicted[:, :8] == -1).all() and (result.predicted[:, 8:] >= 0).all()
    assert toy.forward(m, Sleep(window=4), CONTEXT, tokens, targets, 1).residual.numel() == 0


def test_recompute_wrappers_call_every_window_and_every_pass():
    calls = {"window": 0, "passes": 0}

    def counting(kind):
        def call(fn, *tensors):
            calls[kind] += 1
            return call_directly(fn, *tensors)

        return call

    m, (tokens, targets) = toy.model(), toy.batch(CONTEXT)
    toy.forward(
        m,
        Sleep(window=4),
        CONTEXT,
        tokens,
        targets,
        3,
        recompute=RecomputeWrappers(counting("window"), counting("passes")),
    )
    assert calls == {"window": 3, "passes": 7}
