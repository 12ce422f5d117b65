"""Blocks of a token stream: documents one after the other, written in blocks of equal length and read in rows of any length.

A split is one stream of tokens. Every block but the last one holds `block` of them, so that rows of any length that divides a
block are cut from it when they are read: row i holds the tokens i * row to (i + 1) * row - 1 of the stream, and padding fills the
last row. A row begins in the middle of a document where its first token is not the first one of a document.

Columns of a block:
    tokens      uint16 [n] where all ids fit, else int32 [n]
    starts      int32 [documents that begin in the block]: positions of their first tokens, ascending
    prompts     int32 [2 * prompts in the block]: first position and the one after the last of tokens that no target predicts
    next        the target of the block's last token: the token after the block; -100 if the document ends, or a prompt goes on
    document    number of the document of the block's first token, in the split
    offset      position of that token in its document
    id          number of the block in the split
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sleep_data.task import IGNORED, NO_GROUP


def token_type(vocab: int) -> np.dtype[Any]:
    """The type of stored tokens of a vocabulary."""
    return np.dtype(np.uint16 if vocab <= 1 << 16 else np.int32)


def encodings(tokens: np.dtype[Any]) -> dict[str, str]:
    """MDS encodings of the columns, given the type of the tokens. Positions are the bytes of little-endian numbers, since MDS refuses an array without elements."""
    numbers = dict.fromkeys(("next", "document", "offset", "id"), "int")
    return {"tokens": f"ndarray:{tokens}", "starts": "bytes", "prompts": "bytes"} | numbers


@dataclass(frozen=True)
class Stream:
    """Where the documents of a split lie in its stream of tokens."""

    ends: np.ndarray
    """int64 [documents]: the position after the last token of each, which has at least one."""
    prompts: np.ndarray
    """int64 [documents]: first tokens that no target predicts, beside the first one, which none does."""

    @classmethod
    def of(cls, lengths: np.ndarray, prompts: np.ndarray) -> Stream:
        """From the tokens of each document."""
        return cls(lengths.cumsum(), prompts)

    @property
    def tokens(self) -> int:
        """All tokens."""
        return int(self.ends[-1]) if len(self.ends) else 0

    @property
    def lengths(self) -> np.ndarray:
        """int64 [documents]: tokens of each."""
        return np.diff(self.ends, prepend=0)

    @property
    def targets(self) -> int:
        """Tokens that a target predicts."""
        return int((self.lengths - np.maximum(self.prompts, 1)).sum())

    def inside(self, start: int, stop: int) -> slice:
        """The documents that have tokens in [start, stop)."""
        first, last = np.searchsorted(self.ends, [start, stop - 1], side="right")
        return slice(int(first), int(last) + 1)

    def firsts(self, documents: slice) -> np.ndarray:
        """int64: the position of the first token of each of some documents."""
        before = self.ends[documents.start - 1] if documents.start else 0
        return np.append(before, self.ends[documents.start : documents.stop - 1])

    def block(self, number: int, length: int, tokens: np.ndarray) -> dict[str, Any]:
        """Columns of block `number` of `length` tokens. `tokens` are those of the block and, where there is one, the token after it."""
        start = number * length
        stop = min(start + length, self.tokens)
        documents = self.inside(start, stop)
        first, prompts = self.firsts(documents) - start, self.prompts[documents]
        spans = np.stack([first, first + prompts], axis=1)
        spans = np.clip(spans[prompts > 0], 0, stop - start)
        ends_here = stop == self.ends[documents.stop - 1]
        following = IGNORED if ends_here or stop - start < first[-1] + prompts[-1] else int(tokens[stop - start])
        return {
            "tokens": tokens[: stop - start],
            "starts": first[first >= 0].astype(np.int32),
            "prompts": spans[spans[:, 0] < spans[:, 1]].astype(np.int32).reshape(-1),
            "next": following, "document": documents.start, "offset": int(max(-first[0], 0)), "id": number,
        }  # fmt: skip


def blocks_of(
    documents: Sequence[np.ndarray], length: int, prompts: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """All blocks of `length` tokens of some documents [tokens]."""
    lengths = np.array([len(document) for document in documents])
    stream = Stream.of(lengths, np.zeros_like(lengths) if prompts is None else np.array(prompts))
    tokens = np.concatenate(documents)
    return [
        stream.block(number, length, tokens[start : start + length + 1])
        for number, start in enumerate(range(0, stream.tokens, length))
    ]


def targets_of(block: dict[str, Any], start: int = 0, stop: int | None = None) -> np.ndarray:
    """The target of each position [start, stop) of a block, int32: the next token of the document, or -100."""
    size = len(block["tokens"])
    stop = size if stop is None else min(stop, size)
    targets = block["tokens"][start + 1 : stop + 1].astype(np.int32)
    if stop == size:
        targets = np.append(targets, np.int32(block["next"]))
    starts = block["starts"]
    targets[starts[(starts > start) & (starts <= stop)] - 1 - start] = IGNORED
    for first, end in block["prompts"].reshape(-1, 2) - 1 - start:
        targets[max(first, 0) : max(end, 0)] = IGNORED
    return targets


def to_shard(block: dict[str, Any]) -> dict[str, Any]:
    """A block as MDS stores it."""
    return block | {name: block[name].astype("<i4").tobytes() for name in ("starts", "prompts")}


def from_shard(sample: dict[str, Any]) -> dict[str, Any]:
    """The columns of a block, from a sample as MDS stores it."""
    return sample | {name: np.frombuffer(sample[name], "<i4") for name in ("starts", "prompts")}


def cut_row(block: dict[str, Any], start: int, row: int, pad: int) -> dict[str, Any]:
    """Tokens start..start+row-1 of a block as columns of a sample: tokens, targets, groups, starts (0 or 1), each int32 [row]."""
    positions = block["starts"]
    tokens, targets = block["tokens"][start : start + row], targets_of(block, start, start + row)
    columns = {
        "tokens": np.full(row, pad, np.int32), "targets": np.full(row, IGNORED, np.int32),
        "starts": np.zeros(row, np.int32),
    }  # fmt: skip
    columns["tokens"][: len(tokens)] = tokens
    columns["targets"][: len(tokens)] = targets
    columns["starts"][positions[(positions >= start) & (positions < start + row)] - start] = 1
    columns["groups"] = np.where(columns["targets"] == IGNORED, NO_GROUP, 0).astype(np.int32)
    return columns
