"""Depo: answers against a decoder that reads the cycle from the tokens and follows its edges."""

import numpy as np
import pytest

from sleep_data.depo import Depo
from sleep_data.task import NO_GROUP


class Sample:
    """A sample decoded from its tokens, using only the documented ids."""

    def __init__(self, task: Depo, tokens: list[int]):
        self.task = task
        self.room = task.window * task.windows_of_graph
        self.ends = range(2 + task.names, 2 + 2 * task.names)
        self.hops = range(2 + 2 * task.names, 2 + 2 * task.names + task.hops)
        self.marker = 2 + 2 * task.names + task.hops
        graph = tokens[: self.room]
        begin = graph.index(1)
        assert set(graph[:begin]) <= {0}  # padding is on the left only
        words = self.words(graph[begin + 1 :])
        assert len(words) % 2 == 0
        self.edges = dict(zip(words[::2], words[1::2], strict=True))
        self.count = len(words) // 2
        self.tokens = tokens

    def words(self, tokens: list[int]) -> list[tuple[int, ...]]:
        words, word = [], []
        for token in tokens:
            assert 2 <= token < self.ends.stop
            word.append(token)
            if token in self.ends:
                words.append(tuple(word))
                word = []
        assert not word
        return words

    def walk(self, word: tuple[int, ...], steps: int) -> tuple[int, ...]:
        for _ in range(steps):
            word = self.edges[word]
        return word

    def queries(self):
        """(hops, start, positions of marker and answer) of every query."""
        position = self.room
        while position < len(self.tokens) and self.tokens[position] != 0:
            hops = self.hops.index(self.tokens[position]) + 1
            stop = self.tokens.index(self.marker, position)
            [start] = self.words(self.tokens[position + 1 : stop])
            end = next(i for i in range(stop + 1, len(self.tokens)) if self.tokens[i] in self.ends) + 1
            yield hops, start, stop, end
            position = end
        assert set(self.tokens[position:]) <= {0}


TINY = Depo(nodes=7, hops=5, queries=4, names=6, min_length=1, max_length=3, window=32, windows_of_graph=2)


@pytest.mark.parametrize("samples", [40, pytest.param(10_000, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("task", [Depo(), TINY], ids=["paper", "tiny"])
def test_answers_follow_the_cycle(task, split, samples):
    rows = task.generate(split, 0, samples, seed=1)
    for i in range(samples):
        tokens, targets, groups = (rows[name][i].tolist() for name in ("tokens", "targets", "groups"))
        sample = Sample(task, tokens)
        n = int(rows["label_n"][i])
        first = next(iter(sample.edges))
        cycle = [sample.walk(first, steps) for steps in range(n)]
        assert sample.count == n == len(set(cycle)) == len(sample.edges) and sample.walk(first, n) == first
        expected, split_by = [-100] * len(tokens), [NO_GROUP] * len(tokens)
        asked, starts = [], set()
        for hops, start, marker, end in sample.queries():
            answer = sample.walk(start, hops)
            assert tuple(tokens[marker + 1 : end]) == answer
            expected[marker - 1 : end - 1] = [sample.marker, *answer]
            split_by[marker : end - 1] = [hops] * len(answer)
            asked.append(hops)
            starts.add(start)
        assert targets == expected and groups == split_by
        assert len(starts) == len(asked) == min(n, task.queries)
        assert rows["label_k"][i].tolist() == asked + [0] * (task.queries - len(asked))
        if split == "test":
            assert n == task.nodes and set(asked) <= {1, 2, 4, 8, 16, task.hops}


def test_default_sizes_are_those_of_the_paper():
    task = Depo()
    assert [w.stop - w.start for w in task.windows()] == [75, 75, 75, 75, 60]
    assert [w.targets for w in task.windows()] == [False] * 4 + [True]
    assert task.vocabulary().size == 119 and task.vocabulary().symbols[118] == "ANSWER"
    lengths = (task.generate("test", 0, 1000)["tokens"][:, :300] != 0).sum(axis=1)
    assert 218 <= lengths.mean() <= 260 and lengths.max() <= 300
    train = task.generate("train", 0, 4096)
    sizes = np.arange(3, 76)
    weights = 1 / (sizes + 75**0.5)
    assert train["label_n"].mean() == pytest.approx((sizes * weights).sum() / weights.sum(), abs=1.5)
    counts = np.bincount(train["label_k"][train["label_n"] >= 10].ravel(), minlength=17)
    assert counts[0] == 0 and counts[1:].min() > 0.9 * counts[1:].mean()


def test_word_lengths_are_equally_frequent_in_small_cycles():
    rows = Depo(nodes=75).generate("train", 0, 4096)
    small = rows["label_n"] <= 4
    tokens = (rows["tokens"][small, :300] != 0).sum() - small.sum()
    words = 2 * rows["label_n"][small].sum()
    assert tokens / words == pytest.approx(1.5, abs=0.04)


def test_graphs_that_do_not_fit_are_drawn_again():
    tight = Depo(nodes=10, names=50, window=31, windows_of_graph=1, queries=2, hops=2)
    lengths = (tight.generate("test", 0, 500)["tokens"][:, :31] != 0).sum(axis=1)
    assert lengths.max() == 31 and lengths.min() < 31


def cycle_of(task: Depo, tokens: list[int]) -> tuple:
    sample = Sample(task, tokens)
    start = min(sample.edges)
    return tuple(sample.walk(start, steps) for steps in range(sample.count))


def test_no_test_cycle_occurs_in_training():
    small = Depo(nodes=3, hops=2, queries=1, names=3, max_length=2, window=16, windows_of_graph=1, holdout=3)
    cycles = {
        split: {
            cycle_of(small, row) for seed in (0, 1) for row in small.generate(split, 0, 3000, seed)["tokens"].tolist()
        }
        for split in ("train", "test")
    }
    assert not cycles["train"] & cycles["test"]
    # 12 words give 440 cycles of three; nearly all of them occur, each in its split.
    assert len(cycles["train"]) + len(cycles["test"]) > 420 and len(cycles["test"]) > 100


def test_baselines():
    baselines = TINY.baselines()
    assert set(baselines) == {"1", "2", "4", "5"}
    assert baselines["1"]["exact_chance"] == pytest.approx(1 / 7)
    assert 0 < baselines["5"]["exact_majority"] < 0.2


@pytest.mark.parametrize("task", [TINY, Depo(nodes=20, names=5, min_length=1, max_length=3, queries=5, window=40)])
def test_chance_is_the_success_of_a_guesser_of_nodes(task):
    """A player is shown the true tokens of an answer one by one, and guesses each as a random node that agrees with them."""
    rows = task.generate("test", 0, 1500)
    random = np.random.default_rng(0)
    right, count = {}, {}
    for tokens, targets, groups in zip(*(rows[name].tolist() for name in ("tokens", "targets", "groups")), strict=True):
        sample, shown = Sample(task, tokens), []
        nodes = list(sample.edges)
        for target, group in zip(targets, groups, strict=True):
            if group == NO_GROUP:
                continue
            possible = [node for node in nodes if node[: len(shown)] == tuple(shown)]
            guess = possible[random.integers(len(possible))][len(shown)]
            right[group], count[group] = right.get(group, 0) + (guess == target), count.get(group, 0) + 1
            shown = [] if target in sample.ends else [*shown, target]
    for group, baseline in task.baselines().items():
        share = right[int(group)] / count[int(group)]
        assert baseline["chance"] == pytest.approx(share, abs=4 * (0.25 / count[int(group)]) ** 0.5), group


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"nodes": 2}, "nodes is 2"),
        ({"hops": 0}, "hops is 0"),
        ({"min_length": 3}, "max_length is 2"),
        ({"names": 8}, "72 words, too few"),
        ({"windows_of_graph": 2}, "226 tokens on average"),
        ({"queries": 20}, "up to 120 tokens"),
        ({"holdout": 0}, "holdout is 0"),
    ],
)
def test_wrong_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        Depo(**parameters)
