"""Text: documents one after the other in blocks of a token stream (`stream.py`), every token predicted from those before it.

A document begins with BOS. `targets` are the next tokens of the document; -100 at its last token, and where the next token belongs
to a prompt. Rows of any length, and so windows of any length, are cut from the blocks when they are read; a row may hold several
documents, or a part of one. Of equal documents the first one is kept.

Token ids: bytes 0 to 255, BOS (start of a document) 256, PAD 257; or those of a tokenizer file, or of inputs that are tokenized
already, followed by BOS and PAD.

Splits. A document belongs to the test split with probability 1/holdout, by a hash of its content. Where that would leave a split
without documents, as with a single file, the last 1/holdout of the tokens of every document is held out instead. `groups` is 0 at
every target.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sleep_data import files
from sleep_data.hashing import is_test
from sleep_data.pieces import Fields
from sleep_data.stream import Stream
from sleep_data.task import TaskWindow, Vocabulary, raise_if
from sleep_data.tokenize import Tokenizer, open_tokenizer


@dataclass(frozen=True)
class Text:
    """Parameters of the task."""

    paths: tuple[str, ...] = ()
    """Files and folders. Links are followed. `files.py` lists the formats."""
    block: int = 65536
    """Tokens of a block. A row is cut from one block, so that its length must divide this."""
    tokenizer: str | None = None
    """Path of a tokenizer.json; None for bytes."""
    vocab: int | None = None
    """Number of ids of inputs that are tokenized already, if their tokenizer is not named."""
    field: str = "text"
    """Field of a .jsonl line, and column of a table, that holds the text. Lines without it may have "prompt" and "answer"."""
    separator: int | None = None
    """Token id that ends a document in inputs that are tokenized already; None: each file, sequence or sample is a document."""
    holdout: int = 50
    """One document in this many belongs to the test split; of a few documents, the end of each."""

    def __post_init__(self) -> None:
        paths = (self.paths,) if isinstance(self.paths, str) else tuple(self.paths)
        object.__setattr__(self, "paths", paths)
        raise_if(self.block < 2, f"block is {self.block}; it must be at least 2")
        raise_if(
            self.holdout < 2, f"holdout is {self.holdout}; it must be at least 2 (half of the documents for the test)"
        )
        raise_if(self.vocab is not None and self.vocab < 1, f"vocab is {self.vocab}; it must be at least 1")
        raise_if(
            None not in (self.vocab, self.tokenizer),
            "vocab and tokenizer are both given; the tokenizer defines the vocabulary",
        )
        files.find(paths)

    name = "text"
    version = 3
    label = None

    def labels(self) -> dict[str, str]:
        return {}

    def parameters(self) -> dict[str, Any]:
        return asdict(self) | {"paths": list(self.paths)}

    def vocabulary(self) -> Vocabulary:
        return self.open_tokenizer.vocabulary

    def windows(self) -> tuple[TaskWindow, ...]:
        """None: the reader cuts the stream."""
        return ()

    def notes(self) -> list[str]:
        """One line if files under `paths` are not read."""
        counts = files.left_out(self.paths)
        if not counts:
            return []
        shown = ", ".join(f"{count:,} {suffix or 'without suffix'}" for suffix, count in counts.items())
        return [f"left out: {shown}; read are {files.READ}"]

    def baselines(self) -> dict[str, dict[str, float]]:
        return {"0": {"chance": 1 / self.vocabulary().size}}

    @cached_property
    def open_tokenizer(self) -> Tokenizer:
        """The tokenizer of the documents."""
        return open_tokenizer(self.tokenizer, self.vocab)

    @property
    def fields(self) -> Fields:
        """Where documents are in the files."""
        return Fields(self.field, self.separator)


@dataclass(frozen=True)
class Split:
    """The documents of a split, in order. A document in which `offset` is above 0 is the end of one; it begins with a BOS of its own."""

    document: np.ndarray
    """int64 [documents]: number among all documents that were read."""
    offset: np.ndarray
    """int64 [documents]: tokens of that document before the first one of this split, its BOS included; 0 where it begins here."""
    stream: Stream


def first_of_equal(digests: np.ndarray) -> np.ndarray:
    """Numbers of the documents [n], ascending, that no earlier document equals, given the digest [documents, 2] of each."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable, so that the first of equal ones comes first
    ordered = digests[order]
    differs = np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1))[: len(digests)]
    return np.sort(order[differs])


def divide(
    kept: np.ndarray, digests: np.ndarray, tokens: np.ndarray, prompts: np.ndarray, holdout: int
) -> dict[str, Split]:
    """The splits of the `kept` documents, given the digest [documents, 2], the tokens and the prompt of each document."""
    test = is_test(digests[kept, 0], holdout)
    if test.any() and not test.all():
        chosen = {"train": kept[~test], "test": kept[test]}
        return {
            name: Split(which, np.zeros_like(which), Stream.of(tokens[which], prompts[which]))
            for name, which in chosen.items()
        }
    kept = kept[tokens[kept] > 1]  # not one whose text has no tokens
    held = np.maximum((tokens[kept] - 1) // holdout, 1)
    rest = tokens[kept] - held  # tokens of the training part, BOS included
    some = rest > 1
    return {
        "train": Split(
            kept[some],
            np.zeros(int(some.sum()), np.int64),
            Stream.of(rest[some], np.minimum(prompts[kept], rest)[some]),
        ),
        "test": Split(kept, rest, Stream.of(held + 1, np.clip(prompts[kept] - rest + 1, 0, held + 1))),
    }
