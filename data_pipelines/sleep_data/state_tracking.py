"""State tracking: where people and objects are after a story hidden in a long text, in the manner of BABILong (arXiv 2406.10149).

A story is a list of events in order: a person goes to another place, picks up an object at the same place, or puts one down. Nobody's
place is known before the first event with that person. The kinds of `questions`, which are also their difficulty:

    1   where a person is: the last place the person went to
    2   where an object is: with the person who carries it, or where it was put down
    3   where an object was before it was last brought to a place

The facts stand in order in random gaps between sentences of filler. Every sample draws one of `questions` and one number of `events`.

Scoring. BABILong takes the first sentence of the output and looks for exactly one place in it. Here the answer is the place
alone, and evaluation reports the share of answers whose tokens and end are all right.

Splits. A problem belongs to the test split with probability 1/holdout, by a hash of its events in order and its question. No test
problem occurs in training, whatever the seeds and the filler.

`groups` holds the kind of the question at the tokens of the answer. Labels: `question`, the kind; `events`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sleep_data.haystack import HaystackTask
from sleep_data.story import PLACES, Story
from sleep_data.text_task import numbers
from sleep_data.text_windows import TextProblem


@dataclass(frozen=True)
class StateTracking(HaystackTask):
    """Parameters of the task."""

    questions: int | tuple[int, ...] = (1, 2, 3)
    """Kinds of questions."""
    events: int | tuple[int, ...] = 12
    """Events of a story; if there are several numbers, each sample draws one of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self._questions, self._events  # refuses wrong numbers

    name = "state"
    version = 1
    label = "question"

    @cached_property
    def _questions(self) -> tuple[int, ...]:
        return numbers("questions", self.questions, 1, 3)

    @cached_property
    def _events(self) -> tuple[int, ...]:
        return numbers("events", self.events, 4, 1000)

    def labels(self) -> dict[str, str]:
        return {
            "question": "1 place of a person, 2 place of an object, 3 place of an object before another",
            "events": "events of the story",
        }

    def draw(self, random: np.random.Generator) -> TextProblem:
        kind = self._questions[random.integers(len(self._questions))]
        events = self._events[random.integers(len(self._events))]
        while True:
            story = Story(random, events)
            if asked := story.ask(random, kind):
                break
        question, answer = asked
        turns = [(f"Question: {question}\nAnswer:", answer)]
        instance = "\n".join([*story.sentences, question])
        return TextProblem(story.sentences, turns, kind, instance, {"events": events})

    def baselines(self) -> dict[str, dict[str, float]]:
        """Frequencies, and the success of giving a random place."""
        return {kind: {"exact_chance": 1 / len(PLACES)} | scores for kind, scores in super().baselines().items()}
