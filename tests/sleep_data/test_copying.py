"""Copy: the answers against a reader of the documented layout, disjoint splits, and baselines."""

import numpy as np
import pytest

from sleep_data.copying import Copy
from sleep_data.task import NO_GROUP

SMALL = Copy(lengths=(4, 8, 11), symbols=5, window=4, windows_of_string=3, holdout=3)


def string_of(task: Copy, tokens: list[int]) -> list[int]:
    """The string of a sample: its tokens up to the first padding."""
    context = tokens[: task.window * task.windows_of_string]
    end = context.index(task.symbols) if task.symbols in context else len(context)
    assert set(context[end:]) <= {task.symbols}
    return context[:end]


@pytest.mark.parametrize("samples", [500, pytest.param(10_000, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("task", [Copy(), SMALL], ids=["default", "small"])
def test_every_window_is_repeated(task, split, samples):
    rows = task.generate(split, 0, samples, seed=2)
    room, seen = task.window * task.windows_of_string, set()
    for tokens, targets, groups, n in zip(
        *(rows[name].tolist() for name in ("tokens", "targets", "groups", "label_n")), strict=True
    ):
        string = string_of(task, tokens)
        asked, answers = [], []
        for j in range(task.windows_of_string):
            part = string[j * task.window : (j + 1) * task.window]
            padding = task.window - len(part)
            asked += ([task.symbols + 1 + j, *part[:-1]] if part else []) + [task.symbols] * padding
            answers += [*part, *[-100] * padding]
        assert len(string) == n and tokens[room:] == asked
        assert targets == [-100] * room + answers
        assert groups == [NO_GROUP if target == -100 else n for target in targets]
        seen.add(n)
    assert seen == set(task.lengths)


def test_windows_and_ids():
    assert [(w.start, w.stop, w.targets, w.problem) for w in SMALL.windows()] == [
        (0, 4, False, None), (4, 8, False, None), (8, 12, False, None),
        (12, 16, True, (0,)), (16, 20, True, (1,)), (20, 24, True, (2,)),
    ]  # fmt: skip
    assert SMALL.vocabulary().symbols == ("a", "b", "c", "d", "e", "PAD", "Q0", "Q1", "Q2")
    assert Copy(symbols=30).vocabulary().symbols[27:32] == ("27", "28", "29", "PAD", "Q0")


def test_no_test_string_occurs_in_training():
    task = Copy(lengths=3, symbols=6, window=3, windows_of_string=1, holdout=3)
    strings = {
        split: {tuple(row[:3]) for seed in (0, 1) for row in task.generate(split, 0, 3000, seed)["tokens"].tolist()}
        for split in ("train", "test")
    }
    assert not strings["train"] & strings["test"]
    assert len(strings["train"]) + len(strings["test"]) == 6**3 and len(strings["test"]) > 40


def test_samples_do_not_depend_on_the_requested_range():
    complete = SMALL.generate("train", 0, 1100, seed=5)
    for name, column in SMALL.generate("train", 1020, 1030, seed=5).items():
        assert np.array_equal(column, complete[name][1020:1030]), name


def test_baselines_are_those_of_a_random_guess():
    baselines = SMALL.baselines()
    assert set(baselines) == {"4", "8", "11"} and baselines["8"]["chance"] == 0.2
    assert baselines["8"]["exact_chance"] == pytest.approx(5**-4)
    assert baselines["11"]["exact_chance"] == pytest.approx((2 * 5**-4 + 5**-3) / 3)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"symbols": 1}, "symbols is 1"),
        ({"lengths": ()}, "lengths is empty"),
        ({"lengths": (40, 40)}, "twice"),
        ({"lengths": 129}, "1 to 128 symbols"),
        ({"lengths": 0}, "1 to 128 symbols"),
        ({"lengths": 2}, "too few strings of 2 of 26"),
        ({"holdout": 1}, "holdout is 1"),
    ],
)
def test_wrong_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        Copy(**parameters)
