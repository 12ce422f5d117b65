"""Word problems: answers and operations against a solver of the text, disjoint splits, baselines, and refused parameters."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from sleep_data import animals
from sleep_data.word_problems import WordProblems
from tests.sleep_data.samples_of_text import TextSample, read_sample, sentences

NAME = r"(?:the number of \w+ in \w+ \w+|the total number of animals in \w+ \w+)"
RULE = "The total number of animals in a place is the sum over all animals that are named there."


class Solver:
    """Reads a problem as linear equations in at most one unknown number.

    A value is a pair: the coefficient of the unknown, and the rest.
    """

    def __init__(self, context: str, turn: str) -> None:
        self.equals: dict[str, str] = {}
        self.unknown: list[str] = []
        self.known: list[tuple[str, int]] = []
        self.read: dict[str, str] = {}
        """The sentence in which each quantity is defined."""
        for sentence in sentences(context):
            if match := re.fullmatch(r"T(he number of \w+ in \w+ \w+) equals (.*)\.", sentence):
                name = f"t{match[1]}"
                assert name not in self.equals, "it is defined twice"
                self.equals[name], self.read[name] = match[2], sentence
            elif match := re.fullmatch(r"There are some (\w+ in \w+ \w+)\.", sentence):
                self.unknown.append(f"the number of {match[1]}")
                self.read[self.unknown[-1]] = sentence
            elif match := re.fullmatch(rf"It is known that ({NAME}) is (\d+)\.", sentence):
                self.known.append((match[1], int(match[2])))
                self.read["known"] = sentence
        [self.asked] = re.findall(rf"Question: What is ({NAME})\?", context + turn)
        self.needed: set[str] = set()
        self.operations = 0
        self.values: dict[str, tuple[Fraction, Fraction]] = {}

    def answer(self) -> Fraction:
        if not self.known:
            slope, rest = self.value(self.asked)
            assert slope == 0 and not self.unknown
            return rest
        [(name, given)], [unknown] = self.known, self.unknown
        assert unknown == self.asked
        slope, rest = self.value(name)
        return (given - rest) / slope

    def value(self, name: str) -> tuple[Fraction, Fraction]:
        if name not in self.values:
            self.needed.add(name)
            self.values[name] = self.compute(name)
        return self.values[name]

    def compute(self, name: str) -> tuple[Fraction, Fraction]:
        if name in self.unknown:
            return Fraction(1), Fraction(0)
        if name.startswith("the total"):
            place = name.removeprefix("the total number of animals in ")
            members = [other for other in (*self.equals, *self.unknown) if other.endswith(f" in {place}")]
            assert len(members) > 1
            self.operations += len(members) - 1
            return self.add([self.value(member) for member in members])
        text = self.equals[name]
        if text.isdigit():
            return Fraction(0), Fraction(text)
        constant, by, inner = re.fullmatch(r"(?:(\d+) (plus|times) )?(.*)", text).groups()
        operands = [self.value(part) for part in re.findall(NAME, inner)]
        self.operations += len(operands) - 1 + bool(by)
        if inner.startswith("the difference between"):
            (a, b), (c, d) = operands
            result = a - c, b - d
        else:
            assert inner.startswith("the sum of") == (len(operands) > 1)
            result = self.add(operands)
        if by == "times":
            return result[0] * int(constant), result[1] * int(constant)
        return result[0], result[1] + int(constant or 0)

    @staticmethod
    def add(values: list[tuple[Fraction, Fraction]]) -> tuple[Fraction, Fraction]:
        return sum((a for a, _ in values), Fraction(0)), sum((b for _, b in values), Fraction(0))


def solver_of(sample: TextSample) -> Solver:
    [(prompt, _)] = sample.turns
    return Solver(sample.context, prompt)


TASKS = [WordProblems(), WordProblems(operations=(3, 12, 20), question="before", window=512, modes="forward")]


@pytest.mark.parametrize("samples", [200, pytest.param(10_000, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("task", TASKS, ids=["after", "before"])
def test_answers_and_operations_follow_from_the_text(task, samples):
    for split, count in (("train", samples), ("test", samples // 4)):
        rows = task.generate(split, 0, count, seed=4)
        for row in range(count):
            sample = read_sample(task, rows, row)
            solver, [(prompt, answer)] = solver_of(sample), sample.turns
            assert str(solver.answer()) == answer and 1 <= int(answer) <= 1000
            assert solver.operations == rows["label_operations"][row]
            assert bool(solver.known) == rows["label_mode"][row]
            if task.question == "after":
                assert sample.context.startswith(f" {RULE}") and prompt.endswith("?\nAnswer:")
            else:
                assert re.match(rf" Question: What is {NAME}\? {RULE}", sample.context) and prompt == "Answer:"
        assert set(rows["label_operations"].tolist()) == set(task.operations)
        assert set(rows["label_mode"].tolist()) == ({0, 1} if task.modes != "forward" else {0})


def test_distractors_fill_the_context_and_are_not_needed():
    rows = WordProblems(operations=2).generate("train", 0, 100)
    for row in range(100):
        solver = solver_of(read_sample(WordProblems(), rows, row))
        solver.answer()
        needed = {name.split(" in ")[1] for name in solver.needed}
        distracting = {name for name in solver.equals if name not in solver.needed}
        assert len(distracting) > 10 and not needed & {name.split(" in ")[1] for name in distracting}
        assert any(name in solver.equals[other] for name in solver.needed for other in distracting)
    assert (rows["tokens"][:, :2048] == 257).sum(axis=1).max() < 220


def test_sentences_stand_in_random_order():
    """Where a quantity is used says nothing of where it was introduced, nor a place of where its other quantities are."""
    rows = WordProblems(operations=8).generate("train", 0, 60)
    uses, neighbours = [], []
    for row in range(60):
        equals = solver_of(read_sample(WordProblems(), rows, row)).equals
        at = {name: number for number, name in enumerate(equals)}
        uses += [at[used] < at[name] for name in equals for used in re.findall(NAME, equals[name]) if used in at]
        places = [name.split(" in ")[1] for name in equals]
        neighbours += [a == b for a, b in pairwise(places)]
    assert len(uses) > 1000 and 0.45 < np.mean(uses) < 0.55
    assert np.mean(neighbours) < 0.25


def test_all_animals_of_all_places_may_be_used(monkeypatch):
    """Where there are no more names for distractors, the rest of the context is padding."""
    monkeypatch.setattr(animals, "PLACES", 12)
    task = WordProblems(operations=2, window=4096)
    for row, tokens in enumerate((rows := task.generate("train", 0, 3))["tokens"]):
        assert 100 < len(solver_of(read_sample(task, rows, row)).equals) < 12 * 16 and tokens[0] == 257


def test_no_test_problem_occurs_in_training(monkeypatch):
    """With three animals in two places, so that the same problem is drawn many times."""
    for name, values in {"ANIMALS": ("cranes", "foxes", "owls", "geese"), "PLACES": 2, "PER_PLACE": 100}.items():
        monkeypatch.setattr(animals, name, values)
    monkeypatch.setattr(WordProblems, "draw", with_few_numbers(WordProblems.draw))
    task = WordProblems(operations=1, holdout=2, window=64)
    found = {}
    for split in ("train", "test"):
        rows = [task.generate(split, 0, 150, seed) for seed in (0, 1)]
        problems = []
        for part in rows:
            for row in range(150):
                solver = solver_of(read_sample(task, part, row))
                solver.answer()
                needed = (solver.read.get(name, "") for name in {*solver.needed, "known"})
                problems.append((*sorted(needed), solver.asked))
        found[split] = set(problems)
    assert not found["train"] & found["test"]
    assert all(10 < len(problems) < 270 for problems in found.values())


def with_few_numbers(draw):
    """`draw`, again until no number in the facts is greater than 3."""

    def few(self, random):
        while True:
            problem = draw(self, random)
            if max(map(int, re.findall(r"\d+", " ".join(problem.facts)))) <= 3:
                return problem

    return few


def test_baselines_by_operations_and_mode():
    baselines = WordProblems(operations=(1, 4)).baselines()
    assert set(baselines) == {"1", "4"}
    for scores in baselines.values():
        assert 0.1 < scores["exact_majority_reverse"] < 0.2, "the answer is one of nine numbers"
        assert scores["exact_majority_forward"] < 0.15
        parts = [scores["exact_majority_forward"], scores["exact_majority_reverse"]]
        assert min(parts) / 2 < scores["exact_majority"] < max(parts)
    assert set(WordProblems(operations=1, modes="reverse").baselines()["1"]) == {"majority", "exact_majority"}


def test_samples_do_not_depend_on_the_requested_range():
    complete = TASKS[0].generate("train", 0, 20, seed=5)
    for name, column in TASKS[0].generate("train", 8, 15, seed=5).items():
        assert np.array_equal(column, complete[name][8:15]), name


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"operations": 0}, "operations is 0; give one or more numbers from 1 to 40"),
        ({"modes": ("forward", "backward")}, "give forward, reverse or both"),
        ({"modes": ()}, "give forward, reverse or both"),
        ({"question": "last"}, "question is 'last'; it must be before or after"),
    ],
)
def test_wrong_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        WordProblems(**parameters)
