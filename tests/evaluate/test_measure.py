"""Evaluation: counts against a direct count, residual and retention against their definitions, one number whatever the batch."""

import math

import pytest
import torch

from sleeptrain.data.batch import Batch
from sleeptrain.data.manifest import Manifest
from sleeptrain.evaluate.measure import Tally, measure
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


def test_counts_equal_a_direct_count():
    m, sleep = toy.model(), Sleep(window=4)
    one = batch()
    measured = measure(m, sleep, manifest(), [one], passes=3)
    result = toy.forward(m, sleep, list(LAYOUT), one.tokens, one.targets, 3, predict="tokens")
    right = (result.predicted == one.targets).tolist()
    answers = {1: [(0, [8, 9]), (2, [9])], 2: [(0, [11]), (1, [8, 9, 10, 11])]}
    for value, expected in answers.items():
        tally = measured.by_value[value]
        assert tally.total("tokens") == sum(len(cells) for _, cells in expected)
        assert tally.total("answers") == len(expected)
        assert tally.total("right") == sum(right[r][c] for r, cells in expected for c in cells)
        assert tally.total("exact") == sum(all(right[r][c] for c in cells) for r, cells in expected)
        assert tally.total("nll") == pytest.approx(sum(result.nll[r, c].item() for r, cells in expected for c in cells))
    assert measured.loss == pytest.approx(result.nll.sum().item() / 12) and measured.samples == 3
    assert measured.residual == pytest.approx(result.residual.mean().item())
    fast = [result.state[f"layers.{i}.fast"] for i in (1, 3)]
    assert measured.state_norm == pytest.approx(math.sqrt(sum(float(f.detach().square().sum()) for f in fast) / 3))


def test_exact_answers():
    """A head that predicts the targets makes every answer exact; with one wrong target, all but that answer."""

    m, one = toy.model(), batch()
    predicted = one.targets[:, 8:12].clone()
    m.predict = lambda h, targets: (torch.zeros(targets.shape, dtype=h.dtype), predicted)
    measured = measure(m, Sleep(window=4), manifest(), [one], 1)
    assert all(t.share("right", "tokens") == t.share("exact", "answers") == 1 for t in measured.by_value.values())
    predicted[1, 2] = (predicted[1, 2] + 1) % toy.VOCAB
    measured = measure(m, Sleep(window=4), manifest(), [one], 1)
    assert [measured.by_value[2].total(name) for name in ("exact", "answers", "right")] == [1, 2, 4]


def part(whole, rows):
    return Batch(**{k: getattr(whole, k)[rows] for k in ("tokens", "targets", "groups", "ids")}, labels={})


def test_fillers_change_no_number():
    """A filler is a copy of the last row, as the reader makes it."""
    m, sleep = toy.model(), Sleep(window=4)
    with_filler, two = part(batch(filler=True), [0, 1, 2, 2]), part(batch(), [0, 1])
    with_filler.ids[2:] = -1
    one, other = (measure(m, sleep, manifest(), [rows], 3) for rows in (with_filler, two))
    assert one.samples == 2 and one.targets == 8
    for name in ("loss", "residual", "state_norm", "retention"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-12), name
    assert {v: t.summary() for v, t in one.by_value.items()} == {v: t.summary() for v, t in other.by_value.items()}


def test_numbers_do_not_depend_on_the_rows_of_a_batch():
    m, sleep, whole = toy.model(), Sleep(window=4), batch()
    together, apart, uneven = (
        measure(m, sleep, manifest(), [part(whole, rows) for rows in split], 3)
        for split in ([[0, 1, 2]], [[0], [1], [2]], [[0, 1], [2]])
    )
    for name in ("loss", "residual", "state_norm", "retention"):
        assert getattr(apart, name) == pytest.approx(getattr(together, name), rel=1e-12), name
        assert getattr(uneven, name) == pytest.approx(getattr(together, name), rel=1e-12), name


def test_residual_is_that_of_the_definition_without_padding():
    """Features of every pass, taken from the outside; row 1 ends in padding, and its second window is padding only."""
    m, sleep, one = toy.model(), Sleep(window=4), part(batch(), [0, 2])
    one.tokens[1, 3:8] = 99
    with_pad = Manifest(**{**vars(manifest()), "vocab": 100})
    m.embed = torch.nn.Embedding.from_pretrained(
        torch.cat([m.embed.weight.detach(), torch.zeros(100 - toy.VOCAB, m.config.width, dtype=torch.float64)])
    )
    features = []
    m.layers[-1].register_forward_hook(lambda _, __, out: features.append(out[0].detach().clone()))
    m.logits = lambda h: torch.zeros(*h.shape[:2], toy.VOCAB, dtype=torch.float64)
    measured = measure(m, sleep, with_pad, [one], 3)
    assert len(features) == 3 + 3 + 1
    changes = []
    for first, window in ((0, slice(0, 4)), (3, slice(4, 8))):
        for before, after in zip(features[first : first + 2], features[first + 1 : first + 3], strict=True):
            for row in range(2):
                real = one.tokens[row, window] != 99
                if real.any():
                    x, y = before[row][real], after[row][real]
                    changes.append(((y - x).square().sum() / x.square().sum()).sqrt().item())
    assert len(changes) == 2 * 2 + 2
    assert measured.residual == pytest.approx(sum(changes) / len(changes), rel=1e-6)


def test_equal_problems_count_once():
    """Rows with equal tokens in the windows that the task names pose one problem; by default the whole row is compared."""
    m, sleep, one = toy.model(), Sleep(window=4), part(batch(), [1, 1, 1])
    one.tokens[2, :4] = (one.tokens[2, :4] + 1) % toy.VOCAB
    one.tokens[1, 8:] = (one.tokens[1, 8:] + 1) % toy.VOCAB
    windows = [{"problem": None}, {"problem": None}]
    for named, expected in (([0], 2), ([1], 1), (None, 3)):
        body = {"windows": [*windows, {"problem": named}]}
        measured = measure(m, sleep, Manifest(**{**vars(manifest()), "body": body}), [one], 1)
        assert measured.by_value[2].problems == expected
        assert measured.by_value[2].total("answers") == 3


def test_a_tally_keeps_problems_apart():
    tally = Tally({b"a": [4, 2, 1, 0, 3.0]})
    tally.add(b"b", [4, 4, 1, 1, 0.5])
    tally.add(b"a", [4, 4, 1, 1, 0.5])
    assert tally.problems == 2 and tally.by_problem("right") == [6, 4] and tally.total("nll") == 4
    assert tally.summary()["accuracy"] == 10 / 12 and tally.summary()["exact"] == 2 / 3


@pytest.mark.parametrize("passes", [1, 3])
def test_retention_is_the_product_of_the_decays_between_first_pass_and_last_window(passes):
    m, sleep, one = toy.model(), Sleep(window=4), batch()
    measured = measure(m, sleep, manifest(), [one], passes)
    decays = []
    for layer in (1, 3):
        mixer = m.layers[layer].mixer
        mixer.a.register_forward_hook(lambda _, __, a, mixer=mixer, layer=layer: decays.append((layer, mixer.decay(a))))
    toy.forward(m, sleep, list(LAYOUT), one.tokens, one.targets, passes)
    between = decays[2 : 4 * passes]  # two layers a pass; from pass 2 of the first window to the end of the second one
    for layer in (1, 3):
        alphas = torch.cat([g for i, g in between if i == layer], 1).exp()
        assert alphas.shape[1] == 4 * (2 * passes - 1)
        assert measured.retention_by_head[layer] == pytest.approx(alphas.prod(1).mean(0).tolist())
    assert measured.retention == pytest.approx(max(x for heads in measured.retention_by_head.values() for x in heads))


def test_retention_is_one_without_tokens_in_between():
    layout, m = (Window(0, 8, False), Window(8, 12, True)), toy.model()
    assert measure(m, Sleep(window=8), manifest(layout), [batch()], 1).retention == 1
    assert measure(m, Sleep(window=8), manifest(layout), [batch()], 2).retention < 1


def test_all_windows_of_text_are_measured():
    layout = [Window(0, 4, True), Window(4, 8, True), Window(8, 12, True)]
    m, sleep = toy.model(), Sleep(window=4, loop=Loop(trigger="every"))
    tokens, targets = toy.batch(layout)
    groups = torch.where(targets == -100, -1, 0)
    measured = measure(
        m,
        sleep,
        manifest(layout, None),
        [Batch(tokens=tokens, targets=targets, groups=groups, ids=torch.arange(2), labels={})],
        2,
    )
    nll = toy.forward(m, sleep, layout, tokens, targets, 2).nll
    assert measured.loss == pytest.approx(nll.sum().item() / int((targets != -100).sum()))
    assert cross_entropy(torch.zeros(1, 1, 4), torch.tensor([[2]])).item() == pytest.approx(math.log(4))
