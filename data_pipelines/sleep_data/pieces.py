"""Pieces of documents, as readers yield them, and spans of files, which readers read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Piece(NamedTuple):
    """A document, or a part of one. Documents are runs of pieces, of which the first one `begins`."""

    data: bytes | np.ndarray
    """Text in UTF-8, or token ids [n] of any integer type."""
    begins: bool = True
    scored: bool = True
    """Whether targets predict its tokens; false in prompts, which come first."""


@dataclass(frozen=True)
class Span:
    """A file, or a part of it that is read alone."""

    path: str
    start: int
    """First byte of lines, row group of a .parquet file, or shard of an MDS index."""
    stop: int
    size: int
    """Bytes, by which work is divided and progress is shown."""


@dataclass(frozen=True)
class Fields:
    """Where the documents are in what is read."""

    text: str
    """Field of a line, column of a table."""
    separator: int | None
    """Token id that ends a document in files of token ids; None: each file, sequence or sample is one document."""
