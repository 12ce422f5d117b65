"""State tracking: answers against a reader of the text, possible stories, disjoint splits, and refused parameters."""

from __future__ import annotations

import re

import pytest

from sleep_data import story
from sleep_data.filler import SENTENCES
from sleep_data.state_tracking import StateTracking
from tests.sleep_data.samples_of_text import TextSample, read_sample, sentences

MOVE = re.compile(r"(\w+) (?:went|walked|moved|hurried) to the (\w+)\.")
TAKE = re.compile(r"(\w+) (?:picked up|took|grabbed) the (\w+)\.")
LEAVE = re.compile(r"(\w+) (?:put down|dropped|left) the (\w+)\.")
OTHER = set(SENTENCES)


class Reader:
    """Follows a story sentence by sentence, and checks that each event is possible."""

    def __init__(self, events: list[str]) -> None:
        self.people: dict[str, str] = {}
        self.holder: dict[str, str] = {}
        self.trail: dict[str, list[str]] = {}
        """Known places of each object, one after the other."""
        for sentence in events:
            if match := MOVE.fullmatch(sentence):
                person, place = match.groups()
                assert self.people.get(person) != place
                self.people[person] = place
                for thing, holder in self.holder.items():
                    if holder == person:
                        self.trail[thing].append(place)
            elif match := TAKE.fullmatch(sentence):
                person, thing = match.groups()
                assert thing not in self.holder, "it is carried by somebody"
                here = self.people[person]
                trail = self.trail.setdefault(thing, [here])
                assert trail[-1] == here, "it lies somewhere else"
                self.holder[thing] = person
            else:
                person, thing = LEAVE.fullmatch(sentence).groups()
                assert self.holder.pop(thing) == person

    def answer(self, question: str) -> tuple[int, str]:
        """The kind of a question, and its answer."""
        if match := re.fullmatch(r"Question: Where is the (\w+)\?\nAnswer:", question):
            return 2, self.trail[match[1]][-1]
        if match := re.fullmatch(r"Question: Where is (\w+)\?\nAnswer:", question):
            return 1, self.people[match[1]]
        thing, place = re.fullmatch(
            r"Question: Where was the (\w+) before it was last brought to the (\w+)\?\nAnswer:", question
        ).groups()
        trail = self.trail[thing]
        return 3, trail[max(i for i in range(1, len(trail)) if trail[i] == place) - 1]


def story_of(sample: TextSample) -> list[str]:
    return [sentence for sentence in sentences(sample.context) if sentence not in OTHER]


@pytest.mark.parametrize("samples", [300, pytest.param(10_000, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("task", [StateTracking(), StateTracking(events=(20, 30), window=384)], ids=["short", "long"])
def test_answers_follow_from_the_story(task, samples):
    for split, count in (("train", samples), ("test", samples // 4)):
        rows = task.generate(split, 0, count, seed=2)
        for row in range(count):
            sample = read_sample(task, rows, row)
            events, [(question, answer)] = story_of(sample), sample.turns
            assert Reader(events).answer(question) == (rows["label_question"][row], answer)
            assert len(events) == rows["label_events"][row]
        assert set(rows["label_question"].tolist()) == {1, 2, 3}
        assert set(rows["label_events"].tolist()) == ({12} if task.events == 12 else {20, 30})


def test_no_test_problem_occurs_in_training(monkeypatch):
    """With one person, three places and one object, so that the same story is drawn many times."""
    few = {"PEOPLE": ("Anna",), "PLACES": ("attic", "barn", "cellar"), "OBJECTS": ("coin",)}
    for name, words in (few | {"GOES": ("went to",), "TAKES": ("took",), "LEAVES": ("left",)}).items():
        monkeypatch.setattr(story, name, words)
    task = StateTracking(questions=(1, 2), events=4, window=64, holdout=2)
    found = {}
    for split in ("train", "test"):
        rows = [task.generate(split, 0, 200, seed) for seed in (0, 1)]
        samples = [read_sample(task, part, row) for part in rows for row in range(200)]
        found[split] = {(*story_of(sample), sample.turns[0][0]) for sample in samples}
    assert not found["train"] & found["test"]
    assert all(10 < len(problems) < 200 for problems in found.values())


def test_places_are_nearly_equally_frequent():
    baselines = StateTracking().baselines()
    assert set(baselines) == {"1", "2", "3"}
    for scores in baselines.values():
        assert scores["exact_chance"] == 1 / 8 and 1 / 8 <= scores["exact_majority"] < 0.2


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"questions": 4}, "questions is 4; give one or more numbers from 1 to 3"),
        ({"questions": ()}, "questions is"),
        ({"events": (8, 8)}, "events is .* listed twice"),
        ({"events": 3}, "events is 3; give one or more numbers from 4"),
        ({"window_of_question": 0}, "window_of_question is 0"),
    ],
)
def test_wrong_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        StateTracking(**parameters)
