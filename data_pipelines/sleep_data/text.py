"""Plain text: documents cut into sequences of `windows_per_sample` windows of `window` tokens, everything scored.

A sequence begins with an empty state and holds tokens of one document only. `targets` are the next tokens of the document,
also across the cut between two of its sequences; -100 at its last token and at padding, which fills its last sequence. A last
sequence that would hold nothing but the document's last token is left out: there is nothing to predict in it.

Token ids: bytes 0 to 255, BOS (the start of a document) 256, PAD 257; or those of a tokenizer file with BOS and PAD behind.

Splits. A document belongs to the test split with probability 1/holdout, decided by a hash of its bytes. So copies of a document
stay on one side. `groups` is 0 wherever there is a target. Label: `part`, the number of the sequence within its document.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sleep_data import documents
from sleep_data.hashing import is_test
from sleep_data.task import IGNORED, NO_GROUP, SPLITS, Arrays, Vocabulary, Window, require
from sleep_data.tokenize import Bytes, File, Tokenizer


@dataclass(frozen=True)
class Text:
    """Parameters of the task."""

    paths: tuple[str, ...] = ()
    """Files and folders: .txt, .md, .py (a document each), .jsonl and .parquet (field "text")."""
    window: int = 256
    windows_per_sample: int = 8
    tokenizer: str | None = None
    """A tokenizer.json; none for bytes."""
    holdout: int = 50
    """One document out of this many belongs to the test split."""

    def __post_init__(self) -> None:
        paths = (self.paths,) if isinstance(self.paths, str) else tuple(self.paths)
        object.__setattr__(self, "paths", paths)
        require(self.window < 2, f"window is {self.window}; it must be at least 2")
        require(self.windows_per_sample < 1, f"windows_per_sample is {self.windows_per_sample}; it must be at least 1")
        require(
            self.holdout < 2, f"holdout is {self.holdout}; it must be at least 2 (half of the documents for the test)"
        )
        documents.find(paths)

    name = "text"
    version = 1
    label = None

    def labels(self) -> dict[str, str]:
        return {"part": "number of the sequence within its document"}

    def parameters(self) -> dict[str, Any]:
        return asdict(self) | {"paths": list(self.paths)}

    def inputs(self) -> str:
        """sha256 over all documents in order, and the tokenizer."""
        whole = hashlib.sha256(self.vocabulary().hash.encode())
        for path in documents.find(self.paths):
            for document in documents.read(path):
                whole.update(hashlib.sha256(document).digest())
        return whole.hexdigest()

    def vocabulary(self) -> Vocabulary:
        return self._tokenizer().vocabulary

    def windows(self) -> tuple[Window, ...]:
        return tuple(Window(i * self.window, (i + 1) * self.window, True) for i in range(self.windows_per_sample))

    def blocks(self, split: str, samples: int | None, seed: int) -> Iterator[Arrays]:
        """One block for each document, in the order of the files. The seed is of no account."""
        require(split not in SPLITS, f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
        tokenizer = self._tokenizer()
        written = 0
        for path in documents.find(self.paths):
            for document in documents.read(path):
                if samples is not None and written >= samples:
                    return
                if _in_test(document, self.holdout) != (split == "test"):
                    continue
                block = self._cut(tokenizer.encode(document), tokenizer.vocabulary.pad)
                rows = len(block["tokens"]) if samples is None else min(len(block["tokens"]), samples - written)
                block = {name: column[:rows] for name, column in block.items()}
                yield block | {"id": np.arange(written, written + rows, dtype=np.int64)}
                written += rows

    def baselines(self) -> dict[str, dict[str, float]]:
        return {"0": {"chance": 1 / self.vocabulary().size}}

    def _cut(self, ids: np.ndarray, pad: int) -> Arrays:
        """The sequences of one document."""
        length = self.window * self.windows_per_sample
        rows = -(-(len(ids) - 1) // length)
        tokens, targets = np.full(rows * length, pad), np.full(rows * length, IGNORED)
        tokens[: len(ids)] = ids[: rows * length]
        targets[: len(ids) - 1] = ids[1:]
        targets = targets.reshape(rows, length).astype(np.int32)
        return {
            "tokens": tokens.reshape(rows, length).astype(np.int32),
            "targets": targets,
            "groups": np.where(targets == IGNORED, NO_GROUP, 0).astype(np.int32),
            "label_part": np.arange(rows, dtype=np.int32),
        }

    def _tokenizer(self) -> Tokenizer:
        return Bytes() if self.tokenizer is None else File(self.tokenizer)


def _in_test(document: bytes, holdout: int) -> bool:
    number = int.from_bytes(hashlib.sha256(document).digest()[:8], "little")
    return bool(is_test(np.array([number], np.uint64), holdout)[0])
