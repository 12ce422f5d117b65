"""Plain text: documents one after the other in blocks of a token stream (`stream.py`), every token predicted from those before it.

A document begins with BOS. `targets` are the next tokens of the document; -100 at its last token. Rows of any length, and so
windows of any length, are cut from the blocks when they are read; a row may hold several documents, or a part of one.

Token ids: bytes 0 to 255, BOS (start of a document) 256, PAD 257; or those of a tokenizer file, followed by BOS and PAD.

Splits. A document belongs to the test split with probability 1/holdout, by a hash of its bytes, so that all copies of a
document belong to one split. Where that would leave a split without documents, as with a single file, the last 1/holdout of
every document is held out instead. `groups` is 0 at every target.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sleep_data import documents
from sleep_data.hashing import is_test
from sleep_data.stream import blocks_of
from sleep_data.task import SPLITS, Arrays, TaskWindow, Vocabulary, raise_if
from sleep_data.tokenize import ByteTokenizer, FileTokenizer, Tokenizer


@dataclass(frozen=True)
class Text:
    """Parameters of the task."""

    paths: tuple[str, ...] = ()
    """Files and folders: .txt, .md and .py hold one document; .jsonl and .parquet many, in the field "text". Links are followed."""
    block: int = 65536
    """Tokens of a block. A row is cut from one block, so that its length must divide this."""
    tokenizer: str | None = None
    """Path of a tokenizer.json; None for bytes."""
    holdout: int = 50
    """One document in this many belongs to the test split; of a few documents, the end of each."""

    def __post_init__(self) -> None:
        paths = (self.paths,) if isinstance(self.paths, str) else tuple(self.paths)
        object.__setattr__(self, "paths", paths)
        raise_if(self.block < 2, f"block is {self.block}; it must be at least 2")
        raise_if(
            self.holdout < 2, f"holdout is {self.holdout}; it must be at least 2 (half of the documents for the test)"
        )
        documents.find(paths)

    name = "text"
    version = 3
    label = None

    def labels(self) -> dict[str, str]:
        return {}

    def parameters(self) -> dict[str, Any]:
        return asdict(self) | {"paths": list(self.paths)}

    def inputs(self) -> str:
        """sha256 of all documents in order, and of the tokenizer."""
        digest = hashlib.sha256(self.vocabulary().hash.encode())
        for document in self._documents():
            digest.update(hashlib.sha256(document).digest())
        return digest.hexdigest()

    def vocabulary(self) -> Vocabulary:
        return self._tokenizer().vocabulary

    def windows(self) -> tuple[TaskWindow, ...]:
        """None: the reader cuts the stream."""
        return ()

    def blocks(self, split: str, samples: int | None, seed: int) -> Iterator[Arrays]:
        """Blocks of the token stream of a split, or of its first `samples` documents. The seed is not used."""
        raise_if(split not in SPLITS, f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
        tokenizer = self._tokenizer()
        documents = itertools.islice(self._split(split), samples)
        return blocks_of(map(tokenizer.encode, documents), self.block)

    def notes(self) -> list[str]:
        """One line if files under `paths` are not read."""
        counts = documents.left_out(self.paths)
        if not counts:
            return []
        shown = ", ".join(f"{count:,} {suffix or 'without suffix'}" for suffix, count in counts.items())
        return [f"left out: {shown}; read are files ending in {', '.join(documents.SUFFIXES)}"]

    def _documents(self) -> Iterator[bytes]:
        """All documents, in the order of the files."""
        for path in documents.find(self.paths):
            yield from documents.read(path)

    def _split(self, split: str) -> Iterator[bytes]:
        """The documents of a split, or their parts that belong to it."""
        by_hash = len({_is_test_document(document, self.holdout) for document in self._until_both()}) == 2
        for document in self._documents():
            if by_hash:
                if _is_test_document(document, self.holdout) == (split == "test"):
                    yield document
            elif part := _part(document, self.holdout, split):
                yield part

    def _until_both(self) -> Iterator[bytes]:
        """All documents up to the first one of the second split that occurs."""
        first: bool | None = None
        for document in self._documents():
            yield document
            test = _is_test_document(document, self.holdout)
            first = test if first is None else first
            if test != first:
                return

    def baselines(self) -> dict[str, dict[str, float]]:
        return {"0": {"chance": 1 / self.vocabulary().size}}

    def _tokenizer(self) -> Tokenizer:
        return ByteTokenizer() if self.tokenizer is None else FileTokenizer(self.tokenizer)


def _is_test_document(document: bytes, holdout: int) -> bool:
    """Whether a document belongs to the test split."""
    number = int.from_bytes(hashlib.sha256(document).digest()[:8], "little")
    return bool(is_test(np.array([number], np.uint64), holdout)[0])


def _part(document: bytes, holdout: int, split: str) -> bytes:
    """The last 1/holdout of a document for the test split, the rest for training.

    It is cut at the start of a line, if that holds out no more than half as much again, else at the start of a character.
    """
    held = max(1, len(document) // holdout)
    cut = len(document) - held
    line = document.rfind(b"\n", max(0, cut - held // 2), cut) + 1
    while 0 < cut < len(document) and document[cut] & 0xC0 == 0x80:  # a byte that continues a character in UTF-8
        cut -= 1
    cut = line or cut
    return document[cut:] if split == "test" else document[:cut]
