"""Tallies against counting by hand, retention against a product of decays, intervals against the textbook."""

import math

import pytest
import torch

from sleeptrain.data.batch import Batch
from sleeptrain.data.manifest import Manifest
from sleeptrain.evaluate.measure import Measured, Tally, measure, wilson
from sleeptrain.evaluate.report import Entry, comparison, markdown, plot, rows
from sleeptrain.model.language import cross_entropy
from sleeptrain.program import Loop, Sleep, Window
from tests.model import toy

LAYOUT = (Window(0, 4, False), Window(4, 8, False), Window(8, 12, True))


def manifest(windows=LAYOUT, label="t"):
    return Manifest(
        task="toy", vocab=toy.VOCAB, pad=99, query=None, length=windows[-1].stop, windows=tuple(windows), tokenizer={},
        label=label, label_values=(1, 2), labels={"t": "transitions"}, splits={}, hash="", body={},
        baselines={"1": {"chance": 0.5, "majority": 0.6, "exact_chance": 0.25, "exact_majority": 0.36}},
    )  # fmt: skip


def batch(filler=False):
    tokens, _ = toy.batch(list(LAYOUT), rows=3)
    targets = torch.full_like(tokens, -100)
    targets[:, 8:12] = torch.randint(0, toy.VOCAB, (3, 4), generator=torch.Generator().manual_seed(5))
    groups = torch.full_like(tokens, -1)
    # Row 0: an answer of two tokens (t=1), a scored marker, an answer of one. Row 1: one answer of four. Row 2: t=1, alone.
    groups[0, 8:10], groups[0, 11], groups[1, 8:12], groups[2, 9] = 1, 2, 2, 1
    ids = torch.tensor([0, 1, -1 if filler else 2])
    if filler:
        targets[2], groups[2] = -100, -1
    return Batch(tokens=tokens, targets=targets, groups=groups, ids=ids, labels={})


def test_tallies_are_those_of_counting_by_hand():
    m, sleep = toy.model(), Sleep(window=4)
    one = batch()
    found = measure(m, sleep, manifest(), [one], passes=3)
    result = toy.forward(m, sleep, list(LAYOUT), one.tokens, one.targets, 3, predict=True)
    right = (result.predicted == one.targets).tolist()
    answers = {1: [(0, [8, 9]), (2, [9])], 2: [(0, [11]), (1, [8, 9, 10, 11])]}
    for value, wanted in answers.items():
        tally = found.by_value[value]
        assert tally.tokens == sum(len(cells) for _, cells in wanted) and tally.answers == len(wanted)
        assert tally.right == sum(right[r][c] for r, cells in wanted for c in cells)
        assert tally.exact == sum(all(right[r][c] for c in cells) for r, cells in wanted)
        assert tally.nll == pytest.approx(sum(result.nll[r, c].item() for r, cells in wanted for c in cells))
    assert found.loss == pytest.approx(result.nll.sum().item() / 12) and found.samples == 3
    assert found.residual == pytest.approx(result.residual.mean().item())
    fast = [result.state[f"layers.{i}.fast"] for i in (1, 3)]
    assert found.state_norm == pytest.approx(math.sqrt(sum(float(f.detach().square().sum()) for f in fast) / 3))


def test_exact_answers_with_a_model_that_is_always_right():
    """A head that predicts the target: every answer exact; one token spoiled: that answer alone is not."""

    class Sure(torch.nn.Module):
        def __init__(self, m, targets):
            super().__init__()
            self.m, self.targets = m, targets

        def forward(self, h):
            return torch.nn.functional.one_hot(self.targets.clamp_min(0), toy.VOCAB).double()

    m, one = toy.model(), batch()
    wished = one.targets[:, 8:12].clone()
    m.logits = Sure(m, wished).forward
    found = measure(m, Sleep(window=4), manifest(), [one], 1)
    assert all((t.right, t.exact) == (t.tokens, t.answers) for t in found.by_value.values())
    wished[1, 2] = (wished[1, 2] + 1) % toy.VOCAB
    found = measure(m, Sleep(window=4), manifest(), [one], 1)
    assert (found.by_value[2].exact, found.by_value[2].answers, found.by_value[2].right) == (1, 2, 4)


def test_filler_rows_count_for_nothing():
    m = toy.model()
    found = measure(m, Sleep(window=4), manifest(), [batch(filler=True)], 2)
    assert found.samples == 2 and found.targets == 8
    two = Batch(**{k: getattr(batch(), k)[:2] for k in ("tokens", "targets", "groups", "ids")}, labels={})
    assert found.state_norm == pytest.approx(measure(m, Sleep(window=4), manifest(), [two], 2).state_norm)


@pytest.mark.parametrize("passes", [1, 3])
def test_retention_is_the_product_of_all_decays_between_first_pass_and_answer(passes):
    m, sleep, one = toy.model(), Sleep(window=4), batch()
    found = measure(m, sleep, manifest(), [one], passes)
    seen = []
    for layer in (1, 3):
        mixer = m.layers[layer].mixer
        mixer.a.register_forward_hook(lambda _, __, a, mixer=mixer, layer=layer: seen.append((layer, mixer.decay(a))))
    toy.forward(m, sleep, list(LAYOUT), one.tokens, one.targets, passes)
    between = seen[2 : 4 * passes]  # two layers a pass: without pass 1 of window 1, to the end of window 2
    for layer in (1, 3):
        alphas = torch.cat([g for where, g in between if where == layer], 1).exp()
        assert alphas.shape[1] == 4 * (2 * passes - 1)
        assert found.retention_by_head[layer] == pytest.approx(alphas.prod(1).mean(0).tolist())
    assert found.retention == pytest.approx(max(x for heads in found.retention_by_head.values() for x in heads))


def test_retention_with_nothing_in_between_is_one():
    layout, m = (Window(0, 8, False), Window(8, 12, True)), toy.model()
    assert measure(m, Sleep(window=8), manifest(layout), [batch()], 1).retention == 1
    assert measure(m, Sleep(window=8), manifest(layout), [batch()], 2).retention < 1


def test_wilson_interval():
    low, high = wilson(8, 10)
    assert (low, high) == pytest.approx((0.4901, 0.9433), abs=2e-4)
    assert wilson(0, 10)[0] == pytest.approx(0, abs=1e-12) and wilson(0, 0) is None


@pytest.mark.parametrize("count", [3, 1000, 6640, 2_000_003])
def test_an_interval_holds_its_share(count):
    assert wilson(count, count)[1] >= 1 and wilson(0, count)[0] <= 0


def entry(name, passes, right, tokens=1000, seconds=10.0):
    by_value = {1: Tally(1000, right, 500, right // 2, 100.0), 2: Tally(1000, 500, 500, 10, 600.0)}
    return Entry(
        name, name, 10, tokens, seconds, passes, [Measured(passes, 500, 700.0, 2000, by_value, 0.5, 1.0, 0.25)]
    )


def test_comparison_names_what_is_separated_and_what_is_not():
    lines = comparison([entry("a", 1, 600), entry("b", 4, 800, seconds=38.0)], manifest())
    assert lines == [
        "b (N=4) with 1.00 times the tokens and 3.80 times the time of a (N=1): ahead at t = 1; not separated at t = 2."
    ]
    assert "behind at t = 1" in comparison([entry("a", 1, 900), entry("b", 4, 800)], manifest())[0]
    assert comparison([entry("a", 1, 900), entry("b", 1, 800)], manifest()) == []


def test_table_and_markdown_hold_baselines_and_intervals(tmp_path):
    header, lines = rows([entry("a", 1, 600)], manifest())
    assert len({len(header), *map(len, lines)}) == 1
    assert [line[0] for line in lines] == ["(chance)", "(majority)", "a"]
    cells = dict(zip(header, lines[-1], strict=True))
    assert cells["t=1"] == "0.600 [0.569, 0.630]" and cells["retention"] == "0.25"
    text = markdown([entry("a", 1, 600)], manifest())
    assert text.count("\n| ") == 4 and "0.600 [0.569, 0.630]" in text
    assert plot([entry("a", 1, 600)], manifest(), tmp_path / "p.png") and (tmp_path / "p.png").stat().st_size > 5000


def test_every_window_of_a_text_is_measured():
    layout = [Window(0, 4, True), Window(4, 8, True), Window(8, 12, True)]
    m, sleep = toy.model(), Sleep(window=4, loop=Loop(trigger="every"))
    tokens, targets = toy.batch(layout)
    groups = torch.where(targets == -100, -1, 0)
    found = measure(
        m,
        sleep,
        manifest(layout, None),
        [Batch(tokens=tokens, targets=targets, groups=groups, ids=torch.arange(2), labels={})],
        2,
    )
    nll = toy.forward(m, sleep, layout, tokens, targets, 2).nll
    assert found.loss == pytest.approx(nll.sum().item() / int((targets != -100).sum()))
    assert cross_entropy(torch.zeros(1, 1, 4), torch.tensor([[2]])).item() == pytest.approx(math.log(4))
