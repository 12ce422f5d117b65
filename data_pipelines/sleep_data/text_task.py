"""What the tasks made of text share: parameters of the layout, the split of a problem, rows of samples, and baselines."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from sleep_data.baselines import majority
from sleep_data.filler import Passage, collect
from sleep_data.hashing import is_test
from sleep_data.task import BLOCK, Arrays, TaskWindow, Vocabulary, generator, in_blocks, raise_if
from sleep_data.text_windows import EncodedProblem, TextProblem, TextWindows
from sleep_data.tokenize import open_tokenizer

TRIES, MISFITS = 100, 100
"""Problems that are drawn for a sample, times `holdout`, and those of the split that do not fit, before it is given up."""
TOKENS = 1 << 22
"""Tokens of the samples that are generated together."""


@dataclass(frozen=True)
class TextTask(ABC):
    """A task that draws problems as text. `text_windows.py` has the layout of its samples.

    Every sample has a random stream of its own. A problem that belongs to the other split, or does not fit the windows, is drawn
    again. Sentences of filler are then mixed in until the next one would not fit.
    """

    window: int = 256
    """Tokens of a window of context."""
    windows_of_context: int = 4
    window_of_question: int = 128
    """Tokens of the last window."""
    tokenizer: str | None = None
    """Path of a tokenizer.json; None for bytes."""
    holdout: int = 16
    """One problem in this many belongs to the test split."""

    name: ClassVar[str]
    version: ClassVar[int]
    label: ClassVar[str]

    def __post_init__(self) -> None:
        for name in ("window", "windows_of_context", "window_of_question"):
            raise_if(getattr(self, name) < 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        raise_if(
            self.holdout < 2, f"holdout is {self.holdout}; it must be at least 2 (half of the problems for the test)"
        )

    @abstractmethod
    def labels(self) -> dict[str, str]:
        """Description of every label column; the first one is `label`."""

    @abstractmethod
    def draw(self, random: np.random.Generator) -> TextProblem:
        """A random problem of any split."""

    def passage(self, random: np.random.Generator, room: int) -> Passage:
        """At most `room` tokens of filler, for problems that bring none of their own."""
        return Passage(np.empty(0, np.int32), np.zeros(1, np.int64))

    @cached_property
    def layout(self) -> TextWindows:
        """The windows, with the tokenizer. ValueError if its file cannot be read."""
        return TextWindows(
            self.window, self.windows_of_context, self.window_of_question, open_tokenizer(self.tokenizer)
        )

    def parameters(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def inputs(self) -> str | None:
        return self.vocabulary().hash if self.tokenizer else None

    def notes(self) -> list[str]:
        return []

    def vocabulary(self) -> Vocabulary:
        return self.layout.tokenizer.vocabulary

    def windows(self) -> tuple[TaskWindow, ...]:
        return self.layout.windows()

    def generate(self, split: str, start: int, stop: int, seed: int = 0) -> Arrays:
        """Samples [start, stop) of a split."""
        raise_if(not 0 <= start < stop, f"rows {start} to {stop}: start must be at least 0 and less than stop")
        rows = self.layout.empty(stop - start) | self._no_labels(stop - start)
        for row in range(stop - start):
            random = generator(self.name, seed, split, start + row)
            encoded = self._encoded(random, split)
            problem, room = encoded.problem, self.layout.room - encoded.context_tokens
            if problem.filler is None:
                filler = self.passage(random, room)
            else:
                filler = collect(problem.filler, self.layout.sentence, room).shuffled(random)
            self.layout.write_context(rows["tokens"][row], [encoded.lead, *filler.around(random, encoded.facts)])
            self.layout.write_turns(rows, row, encoded)
            self._write_labels(rows, row, problem)
        return rows | {"id": np.arange(start, stop, dtype=np.int64)}

    def blocks(self, split: str, samples: int | None, seed: int) -> Iterator[Arrays]:
        size = max(1, min(BLOCK, TOKENS // self.windows()[-1].stop))
        return in_blocks(self.generate, split, samples, seed, size)

    def baselines(self) -> dict[str, dict[str, float]]:
        """Always the most frequent token or answer, by the frequencies in training samples."""
        return majority(self.answers(BLOCK))

    def answers(self, samples: int) -> Arrays:
        """The last windows and the labels of training samples."""
        layout = replace(self.layout, windows_of_context=0)
        rows = layout.empty(samples) | self._no_labels(samples)
        for row in range(samples):
            encoded = self._encoded(generator(self.name, 0, "train", row), "train")
            layout.write_turns(rows, row, encoded)
            self._write_labels(rows, row, encoded.problem)
        return rows

    def _no_labels(self, samples: int) -> Arrays:
        return {f"label_{name}": np.zeros(samples, np.int32) for name in self.labels()}

    def _write_labels(self, rows: Arrays, row: int, problem: TextProblem) -> None:
        for name, value in {self.label: problem.label, **problem.labels}.items():
            rows[f"label_{name}"][row] = value

    def _encoded(self, random: np.random.Generator, split: str) -> EncodedProblem:
        """A random problem of a split that fits the windows."""
        room, question, misfits = self.layout.room, self.window_of_question, 0
        for _ in range(TRIES * self.holdout):
            problem = self.draw(random)
            if _is_test_instance(problem.instance, self.holdout) != (split == "test"):
                continue
            encoded = self.layout.encode(problem)
            if encoded.context_tokens <= room and encoded.question_tokens <= question:
                return encoded
            misfits += 1
            raise_if(
                misfits == MISFITS,
                f"{MISFITS} problems of {self.name} do not fit the windows. The last one takes {encoded.context_tokens} of {room} tokens "
                f"of context (windows_of_context={self.windows_of_context}, window={self.window}) and {encoded.question_tokens} of "
                f"window_of_question={question}; take longer or more windows, or smaller problems",
            )
        raise ValueError(f"no problem of the {split} split of {self.name} was found; take a smaller holdout")


def numbers(name: str, given: int | tuple[int, ...], least: int, most: int) -> tuple[int, ...]:
    """The values of a parameter that is one number or several. ValueError if one is out of range or listed twice."""
    values = (given,) if isinstance(given, int) else tuple(given)
    raise_if(
        not values or min(values) < least or max(values) > most,
        f"{name} is {given}; give one or more numbers from {least} to {most}",
    )
    raise_if(len(set(values)) < len(values), f"{name} is {list(values)}; a number is listed twice")
    return values


def _is_test_instance(instance: str, holdout: int) -> bool:
    """Whether a problem belongs to the test split."""
    number = int.from_bytes(hashlib.blake2b(instance.encode(), digest_size=8).digest(), "little")
    return bool(is_test(np.array([number], np.uint64), holdout)[0])
