"""What guessing scores, so that an accuracy can be read: chance and the most frequent answer, for each group.

For each value of `groups` (as text) a table of
    chance          share of answer tokens right when guessing uniformly among the possible answers
    majority        the same when always giving the most frequent answer
    exact_chance    share of answers wholly right; an answer is a run of consecutive answer positions in one window
    exact_majority  the same when always giving the most frequent answer
A key is left out where it has no meaning.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from sleep_data.task import NO_GROUP, Arrays

_RINGS = 1 << 20


def rule110(width: int, steps: Iterable[int], cells: int, rings: int = _RINGS) -> dict[str, dict[str, float]]:
    """By simulating random rings: a cell's most frequent value at t, and that value given for all `cells` of an answer.

    Cells of different strings are independent; within one string they are not, so that there `exact_majority` is only an
    order of magnitude.
    """
    random = np.random.default_rng(110)
    state = random.integers(2**width - 1, size=rings, dtype=np.uint64, endpoint=True)
    ring = np.uint64(2**width - 1)
    one, last = np.uint64(1), np.uint64(width - 1)
    table = {}
    wanted = set(steps)
    for t in range(max(wanted) + 1):
        if t in wanted:
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


def frequent(rows: Arrays) -> dict[str, dict[str, float]]:
    """`majority` and `exact_majority` of each group, counted in given samples."""
    tokens: dict[int, dict[int, int]] = {}
    answers: dict[int, dict[bytes, int]] = {}
    for targets, groups in zip(rows["targets"], rows["groups"], strict=True):
        inside = np.concatenate([[False], groups != NO_GROUP, [False]])
        edges = np.flatnonzero(inside[1:] != inside[:-1]).reshape(-1, 2)
        for start, stop in edges:
            group, answer = int(groups[start]), targets[start:stop]
            whole = answers.setdefault(group, {})
            whole[answer.tobytes()] = whole.get(answer.tobytes(), 0) + 1
            single = tokens.setdefault(group, {})
            for token in answer.tolist():
                single[token] = single.get(token, 0) + 1
    return {
        str(group): {
            "majority": max(tokens[group].values()) / sum(tokens[group].values()),
            "exact_majority": max(answers[group].values()) / sum(answers[group].values()),
        }
        for group in sorted(tokens)
    }
