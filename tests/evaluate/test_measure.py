"""Evaluation: counts against a direct count, retention against products of decays, intervals against published values."""

import math

import pytest
import torch

from sleeptrain.data.batch import Batch
from sleeptrain.data.manifest import Manifest
from sleeptrain.evaluate.measure import Measurement, Tally, measure, wilson
from sleeptrain.evaluate.report import RunResult, compare, markdown, plot_accuracy, print_report, table_rows
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
    result = toy.forward(m, sleep, list(LAYOUT), one.tokens, one.targets, 3, predict=True)
    right = (result.predicted == one.targets).tolist()
    answers = {1: [(0, [8, 9]), (2, [9])], 2: [(0, [11]), (1, [8, 9, 10, 11])]}
    for value, expected in answers.items():
        tally = measured.by_value[value]
        assert tally.tokens == sum(len(cells) for _, cells in expected) and tally.answers == len(expected)
        assert tally.right == sum(right[r][c] for r, cells in expected for c in cells)
        assert tally.exact == sum(all(right[r][c] for c in cells) for r, cells in expected)
        assert tally.nll == pytest.approx(sum(result.nll[r, c].item() for r, cells in expected for c in cells))
    assert measured.loss == pytest.approx(result.nll.sum().item() / 12) and measured.samples == 3
    assert measured.residual == pytest.approx(result.residual.mean().item())
    fast = [result.state[f"layers.{i}.fast"] for i in (1, 3)]
    assert measured.state_norm == pytest.approx(math.sqrt(sum(float(f.detach().square().sum()) for f in fast) / 3))


def test_exact_answers():
    """A head that predicts the targets makes every answer exact; with one wrong target, all but that answer."""

    class FixedPrediction(torch.nn.Module):
        def __init__(self, m, targets):
            super().__init__()
            self.m, self.targets = m, targets

        def forward(self, h):
            return torch.nn.functional.one_hot(self.targets.clamp_min(0), toy.VOCAB).double()

    m, one = toy.model(), batch()
    predicted = one.targets[:, 8:12].clone()
    m.logits = FixedPrediction(m, predicted).forward
    measured = measure(m, Sleep(window=4), manifest(), [one], 1)
    assert all((t.right, t.exact) == (t.tokens, t.answers) for t in measured.by_value.values())
    predicted[1, 2] = (predicted[1, 2] + 1) % toy.VOCAB
    measured = measure(m, Sleep(window=4), manifest(), [one], 1)
    assert (measured.by_value[2].exact, measured.by_value[2].answers, measured.by_value[2].right) == (1, 2, 4)


def test_fillers_are_not_counted():
    m = toy.model()
    measured = measure(m, Sleep(window=4), manifest(), [batch(filler=True)], 2)
    assert measured.samples == 2 and measured.targets == 8
    two = Batch(**{k: getattr(batch(), k)[:2] for k in ("tokens", "targets", "groups", "ids")}, labels={})
    assert measured.state_norm == pytest.approx(measure(m, Sleep(window=4), manifest(), [two], 2).state_norm)


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


def test_wilson_interval():
    low, high = wilson(8, 10)
    assert (low, high) == pytest.approx((0.4901, 0.9433), abs=2e-4)
    assert wilson(0, 10)[0] == pytest.approx(0, abs=1e-12) and wilson(0, 0) is None


@pytest.mark.parametrize("count", [3, 1000, 6640, 2_000_003])
def test_an_interval_contains_its_share(count):
    assert wilson(count, count)[1] >= 1 and wilson(0, count)[0] <= 0


def run_result(name, passes, right, tokens=1000, seconds=10.0):
    by_value = {1: Tally(1000, right, 500, right // 2, 100.0), 2: Tally(1000, 500, 500, 10, 600.0)}
    return RunResult(
        name, name, 10, tokens, seconds, passes, [Measurement(passes, 500, 700.0, 2000, by_value, 0.5, 1.0, 0.25)]
    )


def test_compare_names_separate_and_overlapping_intervals():
    lines = compare([run_result("a", 1, 600), run_result("b", 4, 800, seconds=38.0)], manifest())
    assert lines == [
        "b (N=4) with 1.00 times the tokens and 3.80 times the time of a (N=1): ahead at t = 1; not separated at t = 2."
    ]
    assert "behind at t = 1" in compare([run_result("a", 1, 900), run_result("b", 4, 800)], manifest())[0]
    assert compare([run_result("a", 1, 900), run_result("b", 1, 800)], manifest()) == []


def test_table_and_markdown_have_baselines_and_intervals(tmp_path):
    header, lines = table_rows([run_result("a", 1, 600)], manifest())
    assert len({len(header), *map(len, lines)}) == 1
    assert [line[0] for line in lines] == ["(chance)", "(majority)", "a"]
    cells = dict(zip(header, lines[-1], strict=True))
    assert cells["t=1"] == "0.600 [0.569, 0.630]" and cells["retention"] == "0.25"
    text = markdown([run_result("a", 1, 600)], manifest())
    assert text.count("\n| ") == 4 and "0.600 [0.569, 0.630]" in text
    assert plot_accuracy([run_result("a", 1, 600)], manifest(), tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 5000


def test_report_on_the_terminal_has_a_column_for_each_run(capsys):
    print_report([run_result("a", 1, 600), run_result("[b]", 4, 800)], manifest())
    lines = capsys.readouterr().out.splitlines()
    header = next(line for line in lines if "N=1" in line)
    assert header.split() == ["(chance)", "(majority)", "a", "N=1", "[b]", "N=4"]
    accuracy = next(line for line in lines if line.split()[:1] == ["t=1"])
    assert accuracy.split()[1:4] == ["0.500", "0.600", "0.600"] and "0.800 [0.774, 0.824]" in accuracy
    assert lines[-1].startswith("[b] (N=4) with 1.00 times the tokens")


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
