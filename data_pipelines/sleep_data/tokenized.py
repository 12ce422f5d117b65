"""Tokens of parts of a corpus: each part is read and encoded by one process, and kept as files until the shards are written.

NAME.tokens     ids of all documents, BOS first in each
NAME.npz        a table of the documents, which is written last: a part with a table is complete
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from sleep_data.documents import SPAN, read, spans
from sleep_data.pieces import Fields, Piece, Span
from sleep_data.stream import token_type
from sleep_data.tokenize import Tokenizer

BATCH = 1 << 22
"""Bytes that are encoded at once."""


@dataclass(frozen=True)
class Table:
    """The documents of a part, in order."""

    digests: np.ndarray
    """uint64 [documents, 2]: the first 16 bytes of the sha256 of each."""
    tokens: np.ndarray
    """int64 [documents]: tokens with BOS."""
    prompts: np.ndarray
    """int64 [documents]: first tokens that no target predicts, BOS included; 0 without a prompt."""
    counts: np.ndarray
    """int64 [3]: bytes that were read, empty documents, documents with bytes that are not UTF-8."""

    @classmethod
    def load(cls, path: Path) -> Table:
        """From the file of a part."""
        with np.load(path, allow_pickle=False) as content:
            return cls(**{field.name: content[field.name] for field in fields(cls)})


def parts_of(files: Iterable[Path]) -> list[list[Span]]:
    """Spans of all files in order, in groups of about SPAN bytes."""
    groups: list[list[Span]] = []
    room = 0
    for span in (span for path in files for span in spans(path)):
        if room <= 0:
            groups.append([])
            room = SPAN
        groups[-1].append(span)
        room -= span.size
    return groups


def tokenize_part(part: list[Span], tokenizer: Tokenizer, where: Fields, target: Path) -> None:
    """Encode the documents of a part and write its two files beside `target`, each renamed when it is complete.

    ValueError names what cannot be read.
    """
    kind = token_type(tokenizer.vocabulary.size)
    documents = _Documents(tokenizer)
    partial = target.with_suffix(".partial")
    with partial.open("wb") as file:
        for span in part:
            for batch in _batches(read(span, where, tokenizer.pieces)):
                try:
                    tokens = documents.add(batch)
                except ValueError as error:
                    raise ValueError(f"{span.path}: {error}") from None
                file.write(np.concatenate(tokens).astype(kind).tobytes() if tokens else b"")
    os.replace(partial, target.with_suffix(".tokens"))
    with partial.open("wb") as file:
        np.savez(file, **vars(documents.table()))
    os.replace(partial, target.with_suffix(".npz"))


def _batches(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Pieces of about BATCH bytes together."""
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.data)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Documents:
    """The documents of a part, while their pieces come in."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bos = np.array([tokenizer.bos])
        self._digests: list[bytes] = []
        self._tokens: list[int] = []
        self._prompts: list[int] = []
        self._bytes = self._empty = self._replaced = 0
        self._hash, self._length, self._prompt, self._valid = hashlib.sha256(), 0, 0, True
        self._open = False

    def add(self, pieces: list[Piece]) -> list[np.ndarray]:
        """The tokens of the next pieces, BOS of their documents included, as arrays in order."""
        texts = [piece.data for piece in pieces if isinstance(piece.data, bytes)]
        encoded = iter(self._tokenizer.encode_all(texts) if texts else ())
        tokens = []
        for piece in pieces:
            if piece.begins:
                self._close()
            ids = next(encoded) if isinstance(piece.data, bytes) else self._checked(piece.data)
            if not len(piece.data):
                continue
            if not self._length:
                tokens.append(self._bos)
                self._length = 1
            tokens.append(ids)
            self._length += len(ids)
            if not piece.scored:
                self._prompt = self._length
            self._describe(piece.data)
        return tokens

    def table(self) -> Table:
        """All documents, after the last piece."""
        self._close()
        return Table(
            digests=np.frombuffer(b"".join(self._digests), "<u8").reshape(-1, 2),
            tokens=np.array(self._tokens, np.int64),
            prompts=np.array(self._prompts, np.int64),
            counts=np.array([self._bytes, self._empty, self._replaced]),
        )

    def _describe(self, data: bytes | np.ndarray) -> None:
        content = data if isinstance(data, bytes) else data.astype("<i8").tobytes()
        self._hash.update(content)
        self._bytes += len(content)
        if isinstance(data, bytes) and self._tokenizer.vocabulary.kind == "file":
            try:
                data.decode()
            except UnicodeDecodeError:
                self._valid = False

    def _checked(self, ids: np.ndarray) -> np.ndarray:
        """ValueError if there is an id that the vocabulary lacks."""
        kind, size = self._tokenizer.vocabulary.kind, self._tokenizer.bos
        if kind == "bytes":
            raise ValueError("it holds token ids; name their tokenizer (tokenizer=FILE) or their number (vocab=N)")
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < size:
            wrong = int(ids.max()) if ids.max() >= size else int(ids.min())
            raise ValueError(f"it holds the token id {wrong}; the vocabulary has the ids 0 to {size - 1}")
        return ids

    def _close(self) -> None:
        """End the document whose pieces came in."""
        if self._open and not self._length:
            self._empty += 1
        elif self._length:
            self._digests.append(self._hash.digest()[:16])
            self._tokens.append(self._length)
            self._prompts.append(self._prompt)
            self._replaced += not self._valid
        self._hash, self._length, self._prompt, self._valid = hashlib.sha256(), 0, 0, True
        self._open = True
