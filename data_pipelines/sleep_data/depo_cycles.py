"""Random cycles of Depo: distinct words for the nodes, drawn until the cycle belongs to the split and fits the windows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sleep_data.hashing import fold, is_test

PAD, BOS = 0, 1
GAP = -1
"""Placeholder for a token of a shorter word or a smaller graph; removed before samples are written."""


@dataclass(frozen=True)
class CycleSampler:
    """Draws cycles of up to `nodes` words.

    A word has `min_length` to `max_length` tokens, each of one of `names` names. A cycle with its edges fits if it takes at
    most `room` tokens. One cycle in `holdout` belongs to the test split.
    """

    nodes: int
    names: int
    min_length: int
    max_length: int
    holdout: int
    room: int

    def draw(self, random: np.random.Generator, n: np.ndarray, test: bool) -> np.ndarray:
        """Token ids [rows, nodes, max_length] of the words in the order of the cycle, for n[row] nodes each.

        GAP stands after the last token of a shorter word and in the words from n[row] on.
        """
        cycles = np.full((len(n), self.nodes, self.max_length), GAP)
        missing = np.arange(len(n))
        while len(missing):
            numbers = self._draw_words(random, n[missing])
            of_split = is_test(cycle_hash(numbers, n[missing]), self.holdout) == test
            rows = missing[of_split]
            words = self._tokens(numbers[of_split])
            words[np.arange(self.nodes) >= n[rows, None]] = GAP
            fits = 1 + 2 * (words != GAP).sum(axis=(1, 2)) <= self.room
            cycles[rows[fits]] = words[fits]
            missing = np.setdiff1d(missing, rows[fits])
        return cycles

    def _draw_words(self, random: np.random.Generator, n: np.ndarray) -> np.ndarray:
        """Numbers [rows, nodes] of distinct words in each row; the digits to the base names + 1 are the names of a word.

        The first n[row] words of a row are those that were drawn first, shuffled.
        """
        rows = len(n)
        draws = 4 * self.nodes
        while True:
            lengths = random.integers(self.min_length, self.max_length + 1, size=(rows, draws, 1))
            letters = random.integers(1, self.names + 1, size=(rows, draws, self.max_length))
            position = np.arange(self.max_length)
            numbers = np.where(position < lengths, letters, 0) @ (self.names + 1) ** position
            is_new = first_occurrences(numbers)
            if (is_new.sum(axis=1) >= self.nodes).all():
                break
            draws *= 2
        chosen = np.nonzero(is_new & (is_new.cumsum(axis=1) <= self.nodes))[1].reshape(rows, self.nodes)
        # In the order of drawing short words come early, because the later draws repeat them. Shuffling removes this.
        keys = random.random(chosen.shape)
        keys[np.arange(self.nodes) >= n[:, None]] = 2
        chosen = np.take_along_axis(chosen, np.argsort(keys, axis=1, kind="stable"), axis=1)
        return np.take_along_axis(numbers, chosen, axis=1)

    def _tokens(self, numbers: np.ndarray) -> np.ndarray:
        """Token ids [rows, nodes, max_length] of words by their numbers; GAP stands after the last one of a word."""
        letters = numbers[:, :, None] // (self.names + 1) ** np.arange(self.max_length + 1) % (self.names + 1)
        letters, following = letters[:, :, :-1], letters[:, :, 1:]
        return np.where(letters > 0, letters + BOS + np.where(following == 0, self.names, 0), GAP)


def first_occurrences(numbers: np.ndarray) -> np.ndarray:
    """True [rows, draws] where a number occurs for the first time in its row."""
    order = np.argsort(numbers, axis=1, kind="stable")
    ordered = np.take_along_axis(numbers, order, axis=1)
    is_new = np.concatenate([np.ones((len(numbers), 1), bool), ordered[:, 1:] != ordered[:, :-1]], axis=1)
    result = np.empty_like(is_new)
    np.put_along_axis(result, order, is_new, axis=1)
    return result


def cycle_hash(numbers: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Hash uint64 [rows] of the cycles of the first n words; equal for all rotations of a cycle."""
    position = np.arange(numbers.shape[1])
    inside = position < n[:, None]
    smallest = np.where(inside, numbers, np.iinfo(np.int64).max).argmin(axis=1)
    rotated = np.take_along_axis(numbers, (smallest[:, None] + position) % n[:, None], axis=1)
    return fold(np.where(inside, rotated, 0))
