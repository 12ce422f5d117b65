"""Tokens of a Depo sample: the edges of a cycle in random order, and the queries with their targets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sleep_data.depo_cycles import BOS, GAP, PAD
from sleep_data.task import IGNORED, NO_GROUP


def graph_tokens(random: np.random.Generator, words: np.ndarray, n: np.ndarray, room: int) -> np.ndarray:
    """Tokens [rows, room]: BOS and the edges of each cycle in random order, padded on the left.

    words   [rows, nodes, max_length]: the words in the order of the cycle, as `CycleSampler.draw` returns them
    n       [rows]: nodes of each cycle
    """
    count, nodes, _ = words.shape
    rows = np.arange(count)[:, None]
    successor = (np.arange(nodes) + 1) % n[:, None]
    edges = np.concatenate([words, words[rows, successor]], axis=2)
    edges[np.arange(nodes) >= n[:, None]] = GAP
    order = random.permuted(np.broadcast_to(np.arange(nodes), edges.shape[:2]), axis=1)
    flat = np.concatenate([np.full((count, 1), BOS), edges[rows, order].reshape(count, -1)], axis=1)
    flat = np.concatenate([np.full((count, room), GAP), flat], axis=1)
    packed = np.take_along_axis(flat, np.argsort(flat != GAP, axis=1, kind="stable"), axis=1)[:, -room:]
    return np.where(packed == GAP, PAD, packed)


@dataclass(frozen=True)
class Queries:
    """The last window of some samples, padded on the right."""

    tokens: np.ndarray
    """[rows, length]"""
    targets: np.ndarray
    """[rows, length]: the answer marker and the target word; IGNORED elsewhere."""
    groups: np.ndarray
    """[rows, length]: hops at the tokens of target words; NO_GROUP elsewhere."""
    hops: np.ndarray
    """[rows, queries]: hops of each query; 0 where a small cycle has fewer queries."""


def query_tokens(
    random: np.random.Generator, words: np.ndarray, n: np.ndarray, hops: np.ndarray, hop_zero: int, marker: int
) -> Queries:
    """The queries [hop k, start word, answer marker, target word] of each cycle, from distinct random start words.

    words, n   as for `graph_tokens`
    hops       [rows, queries]: hops k of each query
    hop_zero   id of the token for k hops, minus k
    marker     id of the answer marker
    """
    count, nodes, _ = words.shape
    queries = hops.shape[1]
    rows = np.arange(count)[:, None]
    keys = random.random((count, nodes))
    keys[np.arange(nodes) >= n[:, None]] = 2
    start = np.argsort(keys, axis=1, kind="stable")[:, :queries]
    start = np.pad(start, ((0, 0), (0, queries - start.shape[1])))
    asked = np.where(np.arange(queries) < np.minimum(n, queries)[:, None], hops, 0)
    column = np.ones((count, queries, 1), int)
    question, answer = words[rows, start], words[rows, (start + hops) % n[:, None]]
    tokens = np.concatenate([(hop_zero + hops)[..., None], question, column * marker, answer], axis=2)
    # Role of each token as a target: 0 not scored, 1 answer marker, 2 target word.
    role = np.concatenate([column * 0, question * 0, column, answer * 0 + 2], axis=2)
    group = np.where(role == 2, asked[..., None], NO_GROUP)
    removed = (tokens == GAP) | (asked == 0)[..., None]
    order = np.argsort(removed.reshape(count, -1), axis=1, kind="stable")

    def pack(values: np.ndarray, fill: int) -> np.ndarray:
        return np.take_along_axis(np.where(removed, fill, values).reshape(count, -1), order, axis=1)

    targets = pack(np.where(role > 0, tokens, IGNORED), IGNORED)
    return Queries(pack(tokens, PAD), _shift(targets, IGNORED), _shift(pack(group, NO_GROUP), NO_GROUP), asked)


def _shift(values: np.ndarray, fill: int) -> np.ndarray:
    """Each value one position earlier, where its token is the next one to be predicted."""
    return np.concatenate([values[:, 1:], np.full((len(values), 1), fill)], axis=1)
