"""Blocks of a token stream: documents one after the other, written in blocks of equal length and read in rows of any length.

A split is one stream of tokens. Every block but the last one holds `block` of them, so that rows of any length that divides a
block are cut from it when they are read: row i holds the tokens i * row to (i + 1) * row - 1 of the stream, and padding fills the
last row. A row begins in the middle of a document where its first token is not the first one of a document.

Columns of a block:
    tokens      int32 [n]
    starts      int32 [documents that begin in the block]: positions of their first tokens, ascending
    next        the token after the block, if it belongs to the document of the block's last token; else -100
    document    number of the document of the block's first token, in the split
    offset      position of that token in its document
    id          number of the block in the split
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from sleep_data.task import IGNORED, NO_GROUP, Arrays

ENCODINGS = {
    "tokens": "ndarray:int32",
    "starts": "bytes",
    "next": "int",
    "document": "int",
    "offset": "int",
    "id": "int",
}
"""MDS encodings of the columns. `starts` are the bytes of little-endian numbers, since MDS refuses an array without elements."""


def blocks_of(documents: Iterable[np.ndarray], length: int) -> Iterator[Arrays]:
    """Blocks of `length` tokens of a stream of documents [tokens], each as columns of one row; the last one may be shorter."""
    pieces: list[np.ndarray] = []
    starts: list[int] = []
    held = number = 0
    first = (0, 0)  # document and offset of the block's first token
    for document, tokens in enumerate(documents):
        starts.append(held)
        taken = 0
        while taken < len(tokens):
            # A full block waits for the token after it.
            if held == length:
                yield _block(pieces, starts, int(tokens[taken]) if taken else IGNORED, first, number)
                pieces, held, number = [], 0, number + 1
                starts, first = ([] if taken else [0]), (document, taken)
            part = tokens[taken : taken + length - held]
            pieces.append(part)
            held, taken = held + len(part), taken + len(part)
    if held:
        yield _block(pieces, starts, IGNORED, first, number)


def _block(pieces: list[np.ndarray], starts: list[int], following: int, first: tuple[int, int], number: int) -> Arrays:
    tokens = np.concatenate(pieces).astype(np.int32)
    inside = [start for start in starts if start < len(tokens)]
    columns: dict[str, Any] = {"next": following, "document": first[0], "offset": first[1], "id": number}
    arrays = {name: np.array([value], np.int64) for name, value in columns.items()}
    return {"tokens": tokens[None], "starts": np.array([inside], np.int32)} | arrays


def targets_of(tokens: np.ndarray, starts: np.ndarray, following: int) -> np.ndarray:
    """The next token within the document at every position of a block [n], int32; -100 at the last token of a document."""
    targets = np.append(tokens[1:], following).astype(np.int32)
    targets[starts[starts > 0] - 1] = IGNORED
    return targets


def from_shard(sample: dict[str, Any]) -> dict[str, Any]:
    """The columns of a block, from a sample as MDS stores it."""
    return sample | {"starts": np.frombuffer(sample["starts"], "<i4")}


def cut_row(block: dict[str, Any], start: int, row: int, pad: int) -> dict[str, Any]:
    """Tokens start..start+row-1 of a block as columns of a sample: tokens, targets, groups, starts (0 or 1), each int32 [row]."""
    tokens, positions = block["tokens"], block["starts"]
    part = slice(start, start + row)
    targets = targets_of(tokens, positions, block["next"])[part]
    inside = positions[(positions >= start) & (positions < start + row)] - start
    columns = {
        "tokens": np.full(row, pad, np.int32), "targets": np.full(row, IGNORED, np.int32),
        "starts": np.zeros(row, np.int32),
    }  # fmt: skip
    columns["tokens"][: len(targets)] = tokens[part]
    columns["targets"][: len(targets)] = targets
    columns["starts"][inside] = 1
    columns["groups"] = np.where(columns["targets"] == IGNORED, NO_GROUP, 0).astype(np.int32)
    return columns
