"""Depo: read the edges of one directed cycle in random order, then predict the node k hops after another.

Task of Allen-Zhu (Physics of Language Models, part 4.1) with the sizes of the sleep paper (arXiv 2605.26099, section 6.2) and
the short node names of Depo1. A node is a word of `min_length` to `max_length` tokens, each one of `names` names; the last
token of a word is from a second set of `names` tokens, which marks the end of the word.

Layout. The graph: BOS, then every edge as source word and target word, in random order, padded on the left to
`windows_of_graph * window` tokens and cut into windows at any token. Then one window of up to `queries` queries [hop k, start
word, answer marker, target word], padded on the right to its full size. With the defaults: 4 windows of 75 tokens and one of
60.

The answer marker and the target word are scored. `groups` holds k where the target is a token of the target word and -1 at the
marker, so that accuracy is that of target words, by k. Labels: `n`, the nodes; `k`, the hops of each query in order, 0 where a
small cycle has fewer queries.

Ids: PAD 0, BOS 1, then `names` tokens inside words, `names` tokens that end words, hops 1..K, the answer marker.

Sampling. Train: n from 3..nodes with weight 1 / (n + sqrt(nodes)), k uniform in 1..hops. Test: n = nodes, k uniform over the
powers of two up to `hops` and `hops` itself. Words are drawn one by one without repetition and shuffled. A graph that does not
fit is drawn again with the same n.

Splits. A cycle belongs to the test split with probability 1/holdout, by a hash of its words in order, starting at the word
with the smallest number; the hash is equal for all rotations of the cycle. No test cycle occurs in training, whatever the
seeds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import numpy as np

from sleep_data import baselines
from sleep_data.depo_cycles import BOS, PAD, CycleSampler
from sleep_data.depo_tokens import graph_tokens, query_tokens
from sleep_data.task import (
    BLOCK,
    IGNORED,
    NO_GROUP,
    Arrays,
    GeneratedTask,
    TaskWindow,
    Vocabulary,
    generator,
    raise_if,
)


@dataclass(frozen=True)
class Depo(GeneratedTask):
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
    """One cycle in this many belongs to the test split."""

    def __post_init__(self) -> None:
        for name in ("hops", "queries", "names", "min_length", "windows_of_graph"):
            raise_if(getattr(self, name) < 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        raise_if(self.nodes < 3, f"nodes is {self.nodes}; a cycle has at least 3")
        raise_if(
            self.holdout < 2, f"holdout is {self.holdout}; it must be at least 2 (half of the cycles for the test)"
        )
        low, high = self.min_length, self.max_length
        raise_if(high < low, f"max_length is {high}, below min_length {low}")
        raise_if(
            (self.names + 1) ** high >= 2**62,
            f"max_length is {high}: with {self.names} names the numbers of words exceed 62 bits; take fewer names or shorter words",
        )
        words = sum(self.names**length for length in range(low, high + 1))
        # With fewer words, drawing without repetition would discard almost every draw at its end.
        raise_if(
            words < 2 * self.nodes,
            f"names is {self.names}: that makes {words} words, too few for {self.nodes} nodes; there must be at least twice as many",
        )
        room = self._room
        mean = self.nodes * (low + high) + 1
        raise_if(
            mean > room,
            f"windows_of_graph is {self.windows_of_graph}: {self.nodes} nodes take {mean} tokens on average, and "
            f"{self.windows_of_graph} windows of {self.window} hold {room}; take more or longer windows, or fewer nodes",
        )
        raise_if(
            self._query_length > self.window,
            f"window is {self.window}: {self.queries} queries take up to {self._query_length} tokens and have to fit in one "
            "window; take fewer queries or a longer window",
        )

    name = "depo"
    version = 2
    label = "k"

    @property
    def _room(self) -> int:
        """Tokens of the windows that hold the graph."""
        return self.window * self.windows_of_graph

    @property
    def _query_length(self) -> int:
        """Tokens of the window that holds the queries."""
        return self.queries * (2 + 2 * self.max_length)

    def labels(self) -> dict[str, str]:
        return {"n": "nodes of the cycle", "k": "hops of each query, 0 where there is none"}

    def parameters(self) -> dict[str, Any]:
        return asdict(self)

    def vocabulary(self) -> Vocabulary:
        inside = [f"{i}-" for i in range(1, self.names + 1)]
        ends = [f"{i}." for i in range(1, self.names + 1)]
        symbols = ["PAD", "BOS", *inside, *ends, *(f"HOP{k}" for k in range(1, self.hops + 1)), "ANSWER"]
        return Vocabulary("symbols", tuple(symbols), len(symbols), PAD)

    def windows(self) -> tuple[TaskWindow, ...]:
        size = self.window
        graph = [TaskWindow(i * size, (i + 1) * size, False) for i in range(self.windows_of_graph)]
        return (*graph, TaskWindow(graph[-1].stop, graph[-1].stop + self._query_length, True))

    def baselines(self) -> dict[str, dict[str, float]]:
        """Chance is one of the nodes of a test cycle; the frequencies of tokens and words are those of test samples."""
        rows = self.generate("test", 0, 2 * BLOCK)
        first_end = BOS + 1 + self.names
        majority = baselines.majority(rows)
        chance = baselines.guessed_words(rows, range(first_end, first_end + self.names))
        return {
            k: {"chance": chance[k], "exact_chance": 1 / self.nodes} | majority[k] for k in sorted(majority, key=int)
        }

    def block(self, split: str, number: int, seed: int) -> Arrays:
        """The samples of one block, without ids."""
        random = generator(self.name, seed, split, number)
        n, hops = self._draw_sizes(random, split)
        sampler = CycleSampler(self.nodes, self.names, self.min_length, self.max_length, self.holdout, self._room)
        words = sampler.draw(random, n, split == "test")
        graph = graph_tokens(random, words, n, self._room)
        hop_zero = BOS + 2 * self.names
        queries = query_tokens(random, words, n, hops, hop_zero, marker=hop_zero + self.hops + 1)
        unscored, no_group = np.full(graph.shape, IGNORED), np.full(graph.shape, NO_GROUP)
        return {
            "tokens": np.concatenate([graph, queries.tokens], axis=1).astype(np.int32),
            "targets": np.concatenate([unscored, queries.targets], axis=1).astype(np.int32),
            "groups": np.concatenate([no_group, queries.groups], axis=1).astype(np.int32),
            "label_n": n.astype(np.int32),
            "label_k": queries.hops.astype(np.int32),
        }

    def _draw_sizes(self, random: np.random.Generator, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Nodes [BLOCK] of each cycle and hops [BLOCK, queries] of each query."""
        shape = (BLOCK, self.queries)
        if split == "test":
            powers = {2**i for i in range(self.hops.bit_length())} | {self.hops}
            return np.full(BLOCK, self.nodes), random.choice(sorted(powers), size=shape)
        sizes = np.arange(3, self.nodes + 1)
        weights = 1 / (sizes + sqrt(self.nodes))
        n = random.choice(sizes, size=BLOCK, p=weights / weights.sum())
        return n, random.integers(1, self.hops + 1, size=shape)
