"""Rule 110: targets against a bitwise simulator, exact layouts, disjoint splits, and baselines."""

from collections import Counter

import numpy as np
import pytest

from sleep_data.rule110 import Rule110, step
from sleep_data.task import NO_GROUP

NEXT = {"111": 0, "110": 1, "101": 1, "100": 0, "011": 1, "010": 1, "001": 1, "000": 0}


def simulate(bits: list[int], steps: int) -> list[int]:
    for _ in range(steps):
        n = len(bits)
        bits = [NEXT[f"{bits[(i - 1) % n]}{bits[i]}{bits[(i + 1) % n]}"] for i in range(n)]
    return bits


def test_the_ring_is_periodic():
    # The right neighbour of cell 4 is cell 0; the left neighbour of cell 0 is cell 4.
    assert step(np.array([1, 0, 0, 0, 0])).tolist() == [1, 0, 0, 0, 1]
    assert step(np.array([0, 0, 0, 0, 1])).tolist() == [0, 0, 0, 1, 1]
    assert step(np.array([1, 1, 0, 0, 1])).tolist() == [0, 1, 0, 1, 1]


@pytest.mark.parametrize(
    ("t", "samples"), [(0, 50), (1, 50), (7, 50), (32, 50), pytest.param(16, 10_000, marks=pytest.mark.exhaustive)]
)
def test_paper_layout(t, samples):
    task = Rule110(strings=4, width=24, transitions=t)
    rows = task.generate("train", 0, samples, seed=3)
    assert rows["tokens"].shape == (samples, 100)
    for tokens, targets, groups in zip(rows["tokens"].tolist(), rows["targets"].tolist(), rows["groups"], strict=True):
        first = [simulate(tokens[24 * j : 24 * j + 24], t)[0] for j in range(4)]
        assert tokens[96:] == [2, *first[:3]]
        assert targets == [-100] * 96 + first
        assert groups.tolist() == [NO_GROUP] * 96 + [t] * 4
    assert [(w.start, w.stop, w.targets) for w in task.windows()] == [
        (0, 24, False),
        (24, 48, False),
        (48, 72, False),
        (72, 96, False),
        (96, 100, True),
    ]
    assert task.vocabulary().symbols == ("0", "1", "Q", "PAD")


def test_layout_with_several_t_has_t_in_every_window():
    task = Rule110(strings=3, width=10, transitions=(1, 4, 6))
    assert task.vocabulary().symbols == ("0", "1", "Q", "PAD", "T1", "T4", "T6")
    rows = task.generate("train", 0, 60)
    seen = set()
    for tokens, targets, t in zip(
        rows["tokens"].tolist(), rows["targets"].tolist(), rows["label_t"].tolist(), strict=True
    ):
        seen.add(t)
        windows = [tokens[11 * j : 11 * j + 11] for j in range(3)]
        assert [window[0] for window in windows] == [{1: 4, 4: 5, 6: 6}[t]] * 3
        first = [simulate(window[1:], t)[0] for window in windows]
        assert tokens[33:] == [2, *first[:2]]
        assert targets[33:] == first and set(targets[:33]) == {-100}
    assert seen == {1, 4, 6}
    assert [w.stop - w.start for w in task.windows()] == [11, 11, 11, 3]


@pytest.mark.parametrize("transitions", [3, (2, 5)])
def test_dense_layout_scores_every_cell(transitions):
    task = Rule110(strings=2, width=9, transitions=transitions, variant="dense")
    steps = (3,) if transitions == 3 else transitions
    symbols = task.vocabulary().symbols
    assert symbols == ("0", "1", "Q", "PAD", *(f"T{t}" for t in steps), "CELL", "Q0", "Q1")
    rows = task.generate("test", 0, 40)
    for tokens, targets, groups, t in zip(
        rows["tokens"], rows["targets"], rows["groups"], rows["label_t"], strict=True
    ):
        windows = tokens.reshape(4, 10)
        for j in range(2):
            assert symbols[windows[j, 0]] == f"T{t}"
            assert [symbols[token] for token in windows[2 + j]] == [f"Q{j}"] + ["CELL"] * 9
            answer = targets.reshape(4, 10)[2 + j].tolist()
            assert answer == [-100, *simulate(windows[j, 1:].tolist(), int(t))]
            assert groups.reshape(4, 10)[2 + j].tolist() == [NO_GROUP] + [t] * 9
        assert set(targets[:20].tolist()) == {-100}
    assert [(w.stop - w.start, w.targets) for w in task.windows()] == [(10, False)] * 2 + [(10, True)] * 2


@pytest.mark.parametrize("width", [6, 24])
def test_no_string_of_a_test_sample_occurs_in_a_training_sample(width):
    task = Rule110(strings=4, width=width, transitions=1, holdout=4)
    strings = {
        split: {
            tuple(string)
            for seed in (0, 1)
            for row in task.generate(split, 0, 2000, seed)["tokens"]
            for string in row[: 4 * width].reshape(4, width).tolist()
        }
        for split in ("train", "test")
    }
    assert not strings["train"] & strings["test"]
    if width == 6:  # all 64 strings occur, each in its split
        assert len(strings["train"]) + len(strings["test"]) == 64
        assert 4 <= len(strings["test"]) <= 32


def test_strings_of_a_split_are_uniform():
    rows = Rule110(width=24, transitions=0).generate("train", 0, 4000)
    assert abs(rows["tokens"][:, :96].mean() - 0.5) < 0.01


def test_samples_do_not_depend_on_the_requested_range():
    task = Rule110(width=12, transitions=(1, 2))
    complete = task.generate("train", 0, 2100, seed=5)
    for start, stop in [(0, 3), (1000, 1050), (1023, 1025), (2047, 2100)]:
        part = task.generate("train", start, stop, seed=5)
        for name, column in part.items():
            assert np.array_equal(column, complete[name][start:stop]), name
    assert not np.array_equal(complete["tokens"], task.generate("train", 0, 2100, seed=6)["tokens"])


def test_baselines_are_the_published_ones():
    baselines = Rule110(transitions=(4, 8, 10, 12, 14, 16, 24, 32)).baselines()
    published = {"4": 0.083, "8": 0.086, "10": 0.088, "12": 0.088, "14": 0.094, "16": 0.095, "24": 0.098, "32": 0.100}
    assert {t: round(scores["exact_majority"], 3) for t, scores in baselines.items()} == pytest.approx(
        published, abs=0.003
    )
    assert baselines["32"]["exact_chance"] == 1 / 16
    assert Rule110(transitions=0).baselines()["0"]["majority"] == pytest.approx(0.5, abs=0.002)


def test_the_commonest_whole_state_is_counted():
    """Of all 1,024 rings of ten cells, each advanced by the bitwise simulator; cells of one ring are not independent."""
    baselines = Rule110(strings=2, width=10, transitions=(1, 3), variant="dense").baselines()
    for t in (1, 3):
        states = Counter(tuple(simulate([number >> i & 1 for i in range(10)], t)) for number in range(1024))
        ones = sum(count for state, count in states.items() if state[0]) / 1024
        assert baselines[str(t)] == pytest.approx(
            {
                "chance": 0.5, "majority": max(ones, 1 - ones), "exact_chance": 2**-10,
                "exact_majority": max(states.values()) / 1024,
            }
        )  # fmt: skip


def test_majority_after_one_step_is_that_of_the_rule():
    assert Rule110(width=64, transitions=1).baselines()["1"]["majority"] == pytest.approx(5 / 8, abs=0.002)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"width": 2}, "width is 2"),
        ({"width": 65}, "width is 65"),
        ({"strings": 0}, "strings is 0"),
        ({"transitions": -1}, "transitions is -1"),
        ({"transitions": ()}, "transitions"),
        ({"transitions": (1, 1)}, "twice"),
        ({"variant": "papers"}, "paper or dense"),
        ({"holdout": 1}, "holdout is 1"),
        ({"width": 3, "holdout": 1000}, "smaller holdout"),
    ],
)
def test_wrong_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        Rule110(**parameters)
