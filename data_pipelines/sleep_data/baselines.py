"""Baselines of accuracy for each group: uniform guessing, and always giving the most frequent answer.

The functions return, for each value of `groups` (as text), a table of
    chance          accuracy per answer token when guessing uniformly among the possible answers that agree with the tokens of the
                    answer before it, since a model is given them, too
    majority        the same when always giving the most frequent token
    exact_chance    share of answers with all tokens right; an answer is a run of consecutive answer positions in one window
    exact_majority  the same when always giving the most frequent answer
A table lacks the keys that have no meaning for its task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from sleep_data.task import IGNORED, NO_GROUP, Arrays

_RINGS = 1 << 20
"""Rings that are simulated: all of them up to a width of 20 cells, else so many random ones."""


def rule110(width: int, steps: Iterable[int], strings: int, dense: bool) -> dict[str, dict[str, float]]:
    """Baselines of Rule 110 on random rings of `width` cells, at most 64, after each number of steps.

    An answer is the first cell of `strings` independent rings, or all cells of one ring (`dense`). They are exact up to a
    width of 20. Beyond it, `exact_majority` of a dense answer is too large where it is below about 1e-5.
    """
    if 2**width <= _RINGS:
        state = np.arange(2**width, dtype=np.uint64)
    else:
        random = np.random.default_rng(110)
        state = random.integers(2**width - 1, size=_RINGS, dtype=np.uint64, endpoint=True)
    ring = np.uint64(2**width - 1)
    one, last = np.uint64(1), np.uint64(width - 1)
    table = {}
    reported = set(steps)
    for t in range(max(reported) + 1):
        if t in reported:
            ones = float((state & one).mean())
            majority = max(ones, 1 - ones)
            commonest = np.unique(state, return_counts=True)[1].max() / len(state) if dense else majority**strings
            table[t] = {
                "chance": 0.5,
                "majority": majority,
                "exact_chance": 0.5 ** (width if dense else strings),
                "exact_majority": float(commonest),
            }
        left = ((state << one) | (state >> last)) & ring  # cell i is bit i, so its left neighbour is the bit below
        right = (state >> one) | ((state & one) << last)
        state = (state | right) ^ (left & state & right)
    return {str(t): table[t] for t in steps}


def guessed_words(rows: Arrays, ends: range) -> dict[str, float]:
    """Share of answer tokens that are right when guessing one of a sample's words, by group.

    The guess at a token is a random one of the words that agree with the tokens of the answer before it, which the model is
    given, too. `ends`: ids of the tokens that end a word; the words of a sample are those of its tokens without targets.
    """
    right: dict[int, float] = {}
    count: dict[int, int] = {}
    for tokens, targets, groups in zip(rows["tokens"], rows["targets"], rows["groups"], strict=True):
        context = tokens[: np.flatnonzero(targets != IGNORED)[0]]
        words = {tuple(word) for word in _words(context.tolist(), ends)}
        following = Counter(word[:i] for word in words for i in range(1, len(word) + 1))
        following[()] = len(words)
        for start, stop in _answers(groups):
            answer, group = tuple(targets[start:stop].tolist()), int(groups[start])
            shares = (following[answer[: i + 1]] / following[answer[:i]] for i in range(len(answer)))
            right[group] = right.get(group, 0.0) + sum(shares)
            count[group] = count.get(group, 0) + len(answer)
    return {str(group): right[group] / count[group] for group in sorted(right)}


def _words(tokens: Sequence[int], ends: range) -> Iterator[list[int]]:
    """The words of a graph, which consist of name tokens and end with one of `ends`."""
    word: list[int] = []
    for token in tokens:
        if ends.start - len(ends) <= token < ends.stop:
            word.append(token)
        if token in ends:
            yield word
            word = []


def _answers(groups: np.ndarray) -> np.ndarray:
    """Start and stop [answers, 2] of the runs of positions with a group."""
    inside = np.concatenate([[False], groups != NO_GROUP, [False]])
    return np.flatnonzero(inside[1:] != inside[:-1]).reshape(-1, 2)


def majority(rows: Arrays) -> dict[str, dict[str, float]]:
    """`majority` and `exact_majority` of each group, from the frequencies of tokens and answers in the given samples."""
    tokens: dict[int, dict[int, int]] = {}
    answers: dict[int, dict[bytes, int]] = {}
    for targets, groups in zip(rows["targets"], rows["groups"], strict=True):
        for start, stop in _answers(groups):
            group, answer = int(groups[start]), targets[start:stop]
            answer_counts = answers.setdefault(group, {})
            answer_counts[answer.tobytes()] = answer_counts.get(answer.tobytes(), 0) + 1
            token_counts = tokens.setdefault(group, {})
            for token in answer.tolist():
                token_counts[token] = token_counts.get(token, 0) + 1
    return {
        str(group): {
            "majority": max(tokens[group].values()) / sum(tokens[group].values()),
            "exact_majority": max(answers[group].values()) / sum(answers[group].values()),
        }
        for group in sorted(tokens)
    }
