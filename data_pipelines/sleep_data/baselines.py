"""Baselines of accuracy for each group: uniform guessing, and always giving the most frequent answer.

The functions return, for each value of `groups` (as text), a table of
    chance          accuracy per answer token when guessing uniformly among the possible answers
    majority        the same when always giving the most frequent token
    exact_chance    share of answers with all tokens right; an answer is a run of consecutive answer positions in one window
    exact_majority  the same when always giving the most frequent answer
A table lacks the keys that have no meaning for its task.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from sleep_data.task import NO_GROUP, Arrays

_RINGS = 1 << 20
"""Simulated rings."""


def rule110(width: int, steps: Iterable[int], cells: int, rings: int = _RINGS) -> dict[str, dict[str, float]]:
    """Baselines of Rule 110 after each number of steps, from a simulation of random rings.

    width   cells of a ring, at most 64
    steps   numbers of transitions t
    cells   tokens of an answer; `exact_majority` gives the most frequent value for all of them

    `exact_majority` takes the cells of an answer for independent. Cells of different strings are; those of one string are
    not, so that there it is an order of magnitude only.
    """
    random = np.random.default_rng(110)
    state = random.integers(2**width - 1, size=rings, dtype=np.uint64, endpoint=True)
    ring = np.uint64(2**width - 1)
    one, last = np.uint64(1), np.uint64(width - 1)
    table = {}
    reported = set(steps)
    for t in range(max(reported) + 1):
        if t in reported:
            ones = float((state & one).mean())
            majority = max(ones, 1 - ones)
            table[t] = {
                "chance": 0.5,
                "majority": majority,
                "exact_chance": 0.5**cells,
                "exact_majority": majority**cells,
            }
        left = ((state << one) | (state >> last)) & ring  # cell i is bit i, so its left neighbour is the bit below
        right = (state >> one) | ((state & one) << last)
        state = (state | right) ^ (left & state & right)
    return {str(t): table[t] for t in steps}


def majority(rows: Arrays) -> dict[str, dict[str, float]]:
    """`majority` and `exact_majority` of each group, from the frequencies of tokens and answers in the given samples."""
    tokens: dict[int, dict[int, int]] = {}
    answers: dict[int, dict[bytes, int]] = {}
    for targets, groups in zip(rows["targets"], rows["groups"], strict=True):
        inside = np.concatenate([[False], groups != NO_GROUP, [False]])
        spans = np.flatnonzero(inside[1:] != inside[:-1]).reshape(-1, 2)
        for start, stop in spans:
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
