"""Tasks whose facts are hidden between sentences of filler, from a built-in list or the user's documents."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sleep_data.filler import Filler, Passage, sentences_of
from sleep_data.text_task import TextTask


@dataclass(frozen=True)
class HaystackTask(TextTask):
    """A text task with filler: consecutive sentences from a random one on, in a cycle. Each fact stands in a random gap between two."""

    filler: tuple[str, ...] = ()
    """Files and folders of documents, as for the task `text`, whose sentences are the filler; empty for the built-in sentences."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "filler", (self.filler,) if isinstance(self.filler, str) else tuple(self.filler))

    def inputs(self) -> str | None:
        """sha256 of the tokenizer and of the sentences; None if both are built in."""
        if not self.filler:
            return super().inputs()
        return hashlib.sha256("\n".join([self.vocabulary().hash, *self._sentences]).encode()).hexdigest()

    def passage(self, random: np.random.Generator, room: int) -> Passage:
        return self._filler.passage(random, room)

    @cached_property
    def _sentences(self) -> list[str]:
        return sentences_of(self.filler)

    @cached_property
    def _filler(self) -> Filler:
        return Filler.of(map(self.layout.sentence, self._sentences), self.layout.room)
