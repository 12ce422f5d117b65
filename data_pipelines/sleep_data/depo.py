"""Depo: read the edges of one directed cycle in random order, then say which node comes k hops after another.

Invented by Allen-Zhu (Physics of Language Models, part 4.1); the sizes are those of the sleep paper (arXiv 2605.26099,
section 6.2) with the short node names of Depo1. A node is a word of `min_length` to `max_length` tokens, each drawn from
`names` tokens; the last token of a word is drawn from a second set of as many, so that words end visibly.

Layout. The graph: BOS, then every edge as source word and target word, in random order, padded on the LEFT to
`windows * window` tokens and cut into windows without regard to edges. Then one more window of up to `queries` questions
[hop k, start word, answer marker, target word], padded on the right to its full size. With the defaults:
4 windows of 75 tokens and one of 60.

Scored are the answer marker and the target word. `groups` holds k where a token of the target word is the target and -1 at
the marker, so that accuracy is that of target words, divided by k. Labels: `n`, the nodes; `k`, the hops of each query in
order, 0 where a small cycle has fewer queries than others.

Ids: PAD 0, BOS 1, then `names` tokens inside words, `names` tokens that end words, hops 1..K, the answer marker.

Sampling. Train: n from 3..nodes with weight 1 / (n + sqrt(nodes)), k uniform in 1..hops. Test: n = nodes, k uniform over the
powers of two up to `hops` and `hops` itself. Words are drawn one by one, dropping those drawn before, and shuffled. A graph
that does not fit is drawn again with the same n.

Splits. A cycle belongs to the test split with probability 1/holdout, decided by a hash of its words in order from the one
with the smallest number, so by the cycle itself and not by how it is written. No test cycle occurs in training, whatever
the seeds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import numpy as np

from sleep_data import baselines
from sleep_data.hashing import fold, is_test
from sleep_data.task import BLOCK, IGNORED, NO_GROUP, Arrays, Vocabulary, Window, cut, generator, in_blocks, require

PAD, BOS = 0, 1
GAP = -1
"""A place for a token that is not there: shorter words, smaller graphs. Squeezed out before anything is written."""


@dataclass(frozen=True)
class Depo:
    """Parameters of the task; the defaults are those of the sleep paper."""

    nodes: int = 75
    hops: int = 16
    queries: int = 10
    names: int = 50
    min_length: int = 1
    max_length: int = 2
    window: int = 75
    windows_of_graph: int = 4
    holdout: int = 16
    """One cycle out of this many belongs to the test split."""

    def __post_init__(self) -> None:
        for name in ("hops", "queries", "names", "min_length", "windows_of_graph"):
            require(getattr(self, name) < 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        require(self.nodes < 3, f"nodes is {self.nodes}; a cycle has at least 3")
        require(self.holdout < 2, f"holdout is {self.holdout}; it must be at least 2 (half of the cycles for the test)")
        low, high = self.min_length, self.max_length
        require(high < low, f"max_length is {high}, below min_length {low}")
        require(
            (self.names + 1) ** high >= 2**62, f"max_length is {high}: with {self.names} names a word has no number"
        )
        words = sum(self.names**length for length in range(low, high + 1))
        # Close to the last word, almost every draw has been drawn before.
        require(
            words < 2 * self.nodes,
            f"names is {self.names}: that makes {words} words, too few for {self.nodes} nodes; take at least twice as many",
        )
        room = self.window * self.windows_of_graph
        mean = self.nodes * (low + high) + 1
        require(
            mean > room,
            f"windows_of_graph is {self.windows_of_graph}: {self.nodes} nodes take {mean} tokens on average, and "
            f"{self.windows_of_graph} windows of {self.window} hold {room}; take more or longer windows, or fewer nodes",
        )
        require(
            self._questions > self.window,
            f"window is {self.window}: {self.queries} queries take up to {self._questions} tokens and have to fit in one "
            "window; take fewer queries or a longer window",
        )

    name = "depo"
    version = 1
    label = "k"

    @property
    def _questions(self) -> int:
        return self.queries * (2 + 2 * self.max_length)

    def labels(self) -> dict[str, str]:
        return {"n": "nodes of the cycle", "k": "hops of each query, 0 where there is none"}

    def parameters(self) -> dict[str, Any]:
        return asdict(self)

    def inputs(self) -> None:
        return None

    def vocabulary(self) -> Vocabulary:
        inside = [f"{i}-" for i in range(1, self.names + 1)]
        ends = [f"{i}." for i in range(1, self.names + 1)]
        symbols = ["PAD", "BOS", *inside, *ends, *(f"HOP{k}" for k in range(1, self.hops + 1)), "ANSWER"]
        return Vocabulary("symbols", tuple(symbols), len(symbols), PAD)

    def windows(self) -> tuple[Window, ...]:
        size = self.window
        graph = [Window(i * size, (i + 1) * size, False) for i in range(self.windows_of_graph)]
        return (*graph, Window(graph[-1].stop, graph[-1].stop + self._questions, True))

    def generate(self, split: str, start: int, stop: int, seed: int = 0) -> Arrays:
        """Samples [start, stop) of a split."""
        return cut(lambda block: self._block(split, block, seed), start, stop)

    def blocks(self, split: str, samples: int | None, seed: int) -> Iterator[Arrays]:
        return in_blocks(self.generate, split, samples, seed)

    def baselines(self) -> dict[str, dict[str, float]]:
        """Chance is one of the test split's nodes; the most frequent tokens and words are counted in test samples."""
        counted = baselines.frequent(self.generate("test", 0, 2 * BLOCK))
        chance = {"chance": 1 / self.nodes, "exact_chance": 1 / self.nodes}
        return {k: chance | counted[k] for k in sorted(counted, key=int)}

    def _block(self, split: str, block: int, seed: int) -> Arrays:
        random = generator(self.name, seed, split, block)
        n, hops = self._sizes(random, split)
        words = self._cycles(random, n, split == "test")
        graph = self._graph(random, words, n)
        questions, scored, asked = self._ask(random, words, n, hops)
        silent = np.full(graph.shape, IGNORED)
        return {
            "tokens": np.concatenate([graph, questions], axis=1).astype(np.int32),
            "targets": np.concatenate([silent, scored[0]], axis=1).astype(np.int32),
            "groups": np.concatenate([np.full(graph.shape, NO_GROUP), scored[1]], axis=1).astype(np.int32),
            "label_n": n.astype(np.int32),
            "label_k": asked.astype(np.int32),
        }

    def _sizes(self, random: np.random.Generator, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Nodes [BLOCK] and hops of every query [BLOCK, queries]."""
        shape = (BLOCK, self.queries)
        if split == "test":
            powers = {2**i for i in range(self.hops.bit_length())} | {self.hops}
            return np.full(BLOCK, self.nodes), random.choice(sorted(powers), size=shape)
        sizes = np.arange(3, self.nodes + 1)
        weights = 1 / (sizes + sqrt(self.nodes))
        return random.choice(sizes, size=BLOCK, p=weights / weights.sum()), random.integers(
            1, self.hops + 1, size=shape
        )

    def _cycles(self, random: np.random.Generator, n: np.ndarray, test: bool) -> np.ndarray:
        """Words [BLOCK, nodes, max_length] of token ids in the order of the cycle; GAP in shorter words and beyond n."""
        found = np.full((len(n), self.nodes, self.max_length), GAP)
        missing = np.arange(len(n))
        while len(missing):
            words, numbers = self._words(random, n[missing])
            words[np.arange(self.nodes) >= n[missing, None]] = GAP
            fits = 1 + 2 * (words != GAP).sum(axis=(1, 2)) <= self.window * self.windows_of_graph
            right = fits & (is_test(_canonical(numbers, n[missing]), self.holdout) == test)
            found[missing[right]] = words[right]
            missing = missing[~right]
        return found

    def _words(self, random: np.random.Generator, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Different words for every row: ids [rows, nodes, max_length] and a number for each word [rows, nodes].

        The first n[row] of them are those drawn first.
        """
        rows = len(n)
        draws = 4 * self.nodes
        while True:
            lengths = random.integers(self.min_length, self.max_length + 1, size=(rows, draws, 1))
            letters = random.integers(1, self.names + 1, size=(rows, draws, self.max_length))
            place = np.arange(self.max_length)
            letters = np.where(place < lengths, letters, 0)
            numbers = letters @ (self.names + 1) ** place
            new = _first_time(numbers)
            if (new.sum(axis=1) >= self.nodes).all():
                break
            draws *= 2
        chosen = np.argsort(~new, axis=1, kind="stable")[:, : self.nodes]
        # Shuffle the first n: in the order of drawing, short words come early, since they run out.
        keys = random.random(chosen.shape)
        keys[np.arange(self.nodes) >= n[:, None]] = 2
        chosen = np.take_along_axis(chosen, np.argsort(keys, axis=1, kind="stable"), axis=1)
        letters = np.take_along_axis(letters, chosen[:, :, None], axis=1)
        ends = np.take_along_axis(lengths, chosen[:, :, None], axis=1) - 1 == place
        ids = np.where(letters > 0, letters + BOS + np.where(ends, self.names, 0), GAP)
        return ids, np.take_along_axis(numbers, chosen, axis=1)

    def _graph(self, random: np.random.Generator, words: np.ndarray, n: np.ndarray) -> np.ndarray:
        """The edges [BLOCK, windows_of_graph * window] in random order after BOS, padded on the left."""
        rows = np.arange(BLOCK)[:, None]
        following = (np.arange(self.nodes) + 1) % n[:, None]
        edges = np.concatenate([words, words[rows, following]], axis=2)
        edges[np.arange(self.nodes) >= n[:, None]] = GAP
        order = random.permuted(np.broadcast_to(np.arange(self.nodes), edges.shape[:2]), axis=1)
        flat = np.concatenate([np.full((BLOCK, 1), BOS), edges[rows, order].reshape(BLOCK, -1)], axis=1)
        room = self.window * self.windows_of_graph
        flat = np.concatenate([np.full((BLOCK, room), GAP), flat], axis=1)
        packed = np.take_along_axis(flat, np.argsort(flat != GAP, axis=1, kind="stable"), axis=1)[:, -room:]
        return np.where(packed == GAP, PAD, packed)

    def _ask(
        self, random: np.random.Generator, words: np.ndarray, n: np.ndarray, hops: np.ndarray
    ) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray], np.ndarray]:
        """Questions: tokens [BLOCK, questions]; their targets and groups; the hops asked, 0 where there is no query."""
        rows = np.arange(BLOCK)[:, None]
        keys = random.random((BLOCK, self.nodes))
        keys[np.arange(self.nodes) >= n[:, None]] = 2
        start = np.argsort(keys, axis=1, kind="stable")[:, : self.queries]
        start = np.pad(start, ((0, 0), (0, self.queries - start.shape[1])))
        asked = np.where(np.arange(self.queries) < np.minimum(n, self.queries)[:, None], hops, 0)
        first_hop = BOS + 2 * self.names
        column = np.ones((BLOCK, self.queries, 1), int)
        answer = words[rows, (start + hops) % n[:, None]]
        marker = first_hop + self.hops + 1
        tokens = np.concatenate(
            [(first_hop + hops)[..., None], words[rows, start], column * marker, answer],
            axis=2,
        )
        # What each token is when it is a target: 0 never, 1 the marker, 2 part of the answer.
        role = np.concatenate([column * 0, words[rows, start] * 0, column, answer * 0 + 2], axis=2)
        group = np.where(role == 2, asked[..., None], NO_GROUP)
        gone = (tokens == GAP) | (asked == 0)[..., None]
        order = np.argsort(gone.reshape(BLOCK, -1), axis=1, kind="stable")

        def pack(values: np.ndarray, empty: int) -> np.ndarray:
            return np.take_along_axis(np.where(gone, empty, values).reshape(BLOCK, -1), order, axis=1)

        def one_earlier(values: np.ndarray, empty: int) -> np.ndarray:
            return np.concatenate([values[:, 1:], np.full((BLOCK, 1), empty)], axis=1)

        targets = pack(np.where(role > 0, tokens, IGNORED), IGNORED)
        return pack(tokens, PAD), (one_earlier(targets, IGNORED), one_earlier(pack(group, NO_GROUP), NO_GROUP)), asked


def _first_time(numbers: np.ndarray) -> np.ndarray:
    """Where a number [rows, draws] stands in its row for the first time."""
    order = np.argsort(numbers, axis=1, kind="stable")
    ranked = np.take_along_axis(numbers, order, axis=1)
    new = np.concatenate([np.ones((len(numbers), 1), bool), ranked[:, 1:] != ranked[:, :-1]], axis=1)
    result = np.empty_like(new)
    np.put_along_axis(result, order, new, axis=1)
    return result


def _canonical(numbers: np.ndarray, n: np.ndarray) -> np.ndarray:
    """A hash uint64 [rows] of the cycles of the first n words, whatever node they are written from."""
    place = np.arange(numbers.shape[1])
    inside = place < n[:, None]
    smallest = np.where(inside, numbers, np.iinfo(np.int64).max).argmin(axis=1)
    turned = np.take_along_axis(numbers, (smallest[:, None] + place) % n[:, None], axis=1)
    return fold(np.where(inside, turned, 0))
