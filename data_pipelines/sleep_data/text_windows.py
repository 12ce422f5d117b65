"""Segments of text as the windows of a sample: sentences in windows of context, then a last window that asks and answers.

A segment is encoded by itself, whatever stands before and after it. So the lengths of segments add up with any tokenizer, and an
answer has the same tokens wherever it stands. Sentences of the context begin with a space.

Layout. BOS and the sentences, padded on the left to `windows_of_context * window` tokens and cut into windows at any token. Then
one window of `window_of_question` tokens: turns of a prompt and an answer, padded on the right. Only the tokens of answers are
scored. An answer ends with a line break, which is scored, too, so that an exact answer also ends where it should; and between
two answers stands a prompt, so that each is an answer of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sleep_data.task import IGNORED, NO_GROUP, Arrays, TaskWindow
from sleep_data.tokenize import Tokenizer


@dataclass(frozen=True)
class TextProblem:
    """What a sample says and asks, as text."""

    facts: Sequence[str]
    """Sentences that the context must hold, in their order."""
    turns: Sequence[tuple[str, str]]
    """Prompts and answers of the last window, without the space and the line break around an answer."""
    label: int
    """The value in `groups`: how difficult the problem is."""
    instance: str
    """What two problems have in common if they must be in the same split."""
    labels: Mapping[str, int] = field(default_factory=dict)
    """Values of further label columns."""
    lead: str = ""
    """A sentence that comes before all others; empty for none."""
    filler: Iterator[str] | None = None
    """Sentences to be mixed in, in random order, until the context is full; None for those of the task."""


@dataclass(frozen=True)
class EncodedProblem:
    """The token ids of a problem's segments, each int32 [tokens]."""

    problem: TextProblem
    lead: np.ndarray
    facts: Sequence[np.ndarray]
    turns: Sequence[tuple[np.ndarray, np.ndarray]]

    @property
    def context_tokens(self) -> int:
        """Tokens of the context without BOS and filler."""
        return len(self.lead) + sum(map(len, self.facts))

    @property
    def question_tokens(self) -> int:
        """Tokens of the last window."""
        return sum(len(prompt) + len(answer) for prompt, answer in self.turns)


@dataclass(frozen=True)
class TextWindows:
    """The windows of samples of one task."""

    window: int
    windows_of_context: int
    window_of_question: int
    tokenizer: Tokenizer

    @property
    def room(self) -> int:
        """Tokens of the context after BOS."""
        return self.window * self.windows_of_context - 1

    def windows(self) -> tuple[TaskWindow, ...]:
        """The context in equal windows, and the last window."""
        context = [TaskWindow(i * self.window, (i + 1) * self.window, False) for i in range(self.windows_of_context)]
        return (*context, TaskWindow(self.room + 1, self.room + 1 + self.window_of_question, True))

    def sentence(self, text: str) -> np.ndarray:
        """Token ids of a sentence of the context, int32 [tokens]."""
        return self._encode(f" {text}")

    def encode(self, problem: TextProblem) -> EncodedProblem:
        """Token ids of all segments."""
        turns = [(self._encode(prompt), self._encode(f" {answer}\n")) for prompt, answer in problem.turns]
        lead = self.sentence(problem.lead) if problem.lead else np.empty(0, np.int32)
        return EncodedProblem(problem, lead, [self.sentence(fact) for fact in problem.facts], turns)

    def _encode(self, segment: str) -> np.ndarray:
        return self.tokenizer.encode_all([segment.encode()])[0]

    def empty(self, rows: int) -> Arrays:
        """Rows of padding without targets: tokens, targets, groups int32 [rows, length]."""
        shape = (rows, self.room + 1 + self.window_of_question)
        fills = {"tokens": self.tokenizer.vocabulary.pad, "targets": IGNORED, "groups": NO_GROUP}
        return {name: np.full(shape, fill, np.int32) for name, fill in fills.items()}

    def write_context(self, tokens: np.ndarray, sentences: Sequence[np.ndarray]) -> None:
        """Write BOS and the sentences into one row [length], up to the end of the context."""
        written = np.concatenate([np.array([self.tokenizer.bos], np.int32), *sentences])
        tokens[self.room + 1 - len(written) : self.room + 1] = written

    def write_turns(self, rows: Arrays, row: int, encoded: EncodedProblem) -> None:
        """Write the last window of one of some rows: tokens, and targets and groups of answers."""
        at = self.room + 1
        for prompt, answer in encoded.turns:
            begin, end = at + len(prompt), at + len(prompt) + len(answer)
            rows["tokens"][row, at:begin] = prompt
            rows["tokens"][row, begin:end] = answer
            rows["targets"][row, begin - 1 : end - 1] = answer
            rows["groups"][row, begin - 1 : end - 1] = encoded.problem.label
            at = end
