"""Filler: sentences that have nothing to do with a task, from a built-in list or the user's documents, around its facts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sleep_data.documents import texts

SENTENCES = (
    "The rain stopped before noon.", "A narrow path leads along the river.", "Nobody had opened the windows for weeks.",
    "The bread was still warm.", "Clouds gathered behind the hills.", "An old clock ticked in the corner.",
    "The last ferry leaves at dusk.", "Snow lay on the roofs until April.", "Somewhere a dog barked twice.",
    "The letter arrived a day late.", "Leaves drifted across the yard.", "The tide comes in faster than one thinks.",
    "A faint smell of smoke hung in the air.", "The bridge was painted green last summer.", "Two boats waited at the pier.",
    "The road bends to the left behind the mill.", "In the evening the wind turned.", "The soup needed a little more salt.",
    "A candle burned down on the table.", "The train slowed down and stopped.", "Dust covered the old maps.",
    "Every spring the swallows return.", "The market closes early in winter.", "A gate creaked in the dark.",
    "The water was too cold for swimming.", "Most of the apples had fallen already.", "The song was known in every village.",
    "Fog hides the far shore.", "A thin line of light fell under the door.", "The guests stayed longer than planned.",
    "Nothing moved in the afternoon heat.", "The path through the forest is shorter.", "A storm was announced for the night.",
    "The paint on the fence peels off.", "Grass grows between the stones.", "The harvest was better than expected.",
)  # fmt: skip
"""The built-in list, which holds no name, number or place of any task."""
SHORTEST, LONGEST = 10, 300
"""Characters of a sentence that is taken from documents."""
TEXT_LIMIT = 1 << 24
"""Characters of the documents that are used, at most."""

Encode = Callable[[str], np.ndarray]
"""Token ids of a sentence, int32 [tokens]."""


@dataclass(frozen=True)
class Passage:
    """Consecutive sentences: sentence i has the tokens bounds[i] to bounds[i + 1]."""

    tokens: np.ndarray
    bounds: np.ndarray

    def shuffled(self, random: np.random.Generator) -> Passage:
        """The sentences in random order."""
        order = random.permutation(len(self.bounds) - 1)
        parts = [self.tokens[self.bounds[i] : self.bounds[i + 1]] for i in order.tolist()]
        return Passage(np.concatenate([self.tokens[:0], *parts]), np.cumsum([0, *map(len, parts)]))

    def around(self, random: np.random.Generator, facts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Pieces of text in which the facts stand in their order, each in a random gap between two sentences."""
        gaps = np.sort(random.integers(len(self.bounds), size=len(facts)))
        cuts = [self.bounds[0], *self.bounds[gaps], self.bounds[-1]]
        pieces = [self.tokens[start:stop] for start, stop in pairwise(cuts)]
        return [piece for pair in zip(pieces, [*facts, pieces[-1][:0]], strict=True) for piece in pair]


@dataclass(frozen=True)
class Filler:
    """A cycle of sentences, written out so often that a passage may begin at each of the first `period` sentences."""

    cycle: Passage
    period: int

    @classmethod
    def of(cls, sentences: Iterable[np.ndarray], room: int) -> Filler:
        """From encoded sentences, for passages of up to `room` tokens."""
        once = list(sentences)
        rounds = 1 + -(-room // sum(map(len, once)))
        lengths = [len(sentence) for sentence in once]
        return cls(Passage(np.concatenate(once * rounds), np.cumsum([0, *lengths * rounds])), len(once))

    def passage(self, random: np.random.Generator, room: int) -> Passage:
        """As many sentences as `room` tokens hold, from a random one on."""
        bounds = self.cycle.bounds
        first = random.integers(self.period)
        last = np.searchsorted(bounds, bounds[first] + room, side="right")
        return Passage(self.cycle.tokens, bounds[first:last])


def collect(sentences: Iterator[str], encode: Encode, room: int) -> Passage:
    """The first sentences, as many as `room` tokens hold."""
    taken, bounds = [np.empty(0, np.int32)], [0]
    for sentence in sentences:
        tokens = encode(sentence)
        if bounds[-1] + len(tokens) > room:
            break
        taken.append(tokens)
        bounds.append(bounds[-1] + len(tokens))
    return Passage(np.concatenate(taken), np.array(bounds))


def sentences_of(paths: Sequence[str]) -> list[str]:
    """The sentences of the documents under `paths`, in order, or the built-in ones if there are no paths.

    A sentence ends at ".", "!", "?" or an empty line. White space becomes single spaces. Sentences of less than 10 or more than
    300 characters are left out. Of many documents the first 16,777,216 characters are read. ValueError if none is left.
    """
    if not paths:
        return list(SENTENCES)
    found, read = list[str](), 0
    for document in texts(paths, key="filler"):
        text = document[: TEXT_LIMIT - read].decode(errors="replace")
        read += len(document)
        parts = (" ".join(part.split()) for part in re.split(r"(?<=[.!?])\s+|\n\s*\n", text))
        found += [part for part in parts if SHORTEST <= len(part) <= LONGEST]
        if read >= TEXT_LIMIT:
            return found
    if not found:
        raise ValueError(
            f"filler: there is no sentence of {SHORTEST} to {LONGEST} characters under {', '.join(map(str, paths))}"
        )
    return found
