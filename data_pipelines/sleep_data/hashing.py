"""Assignment to the train or test split by a hash of the content: vectorised, and equal on every machine."""

from __future__ import annotations

import numpy as np


def mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014): a bijection uint64 -> uint64 that spreads every bit."""
    z = values.astype(np.uint64)  # a copy; arrays of unsigned integers wrap around
    z += np.uint64(0x9E3779B97F4A7C15)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def fold(columns: np.ndarray) -> np.ndarray:
    """Hash of each row of non-negative integers, [rows, n] -> uint64 [rows]; depends on order and length."""
    state = np.full(len(columns), columns.shape[1], np.uint64)
    for column in mix(columns.T):
        state = mix(state ^ column)
    return state


def is_test(hashes: np.ndarray, holdout: int) -> np.ndarray:
    """True for the share 1/holdout of all hashes that belongs to the test split, whatever the seed."""
    return hashes % np.uint64(holdout) == 0
