"""Words for the problems of text tasks: keys of two words, names of variables, and made-up words."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

ADJECTIVES = (
    "amber", "brave", "calm", "dusty", "early", "faded", "gentle", "hollow", "icy", "jolly", "keen", "lively", "misty",
    "narrow", "odd", "pale", "quiet", "rusty", "silver", "tall", "upper", "velvet", "wild", "young",
)  # fmt: skip
NOUNS = (
    "anchor", "basket", "candle", "drum", "engine", "feather", "garden", "hammer", "island", "jacket", "kettle", "lantern",
    "mirror", "needle", "orchard", "pillow", "quarry", "ribbon", "saddle", "teapot", "umbrella", "violin", "wagon", "zipper",
)  # fmt: skip
KEYS = len(ADJECTIVES) * len(NOUNS)
"""Different keys."""
_CAPITALS = np.array([*"ABCDEFGHIJKLMNOPQRSTUVWXYZ"])
_SYLLABLES = np.array([consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"])


def draw_keys(random: np.random.Generator, count: int) -> list[str]:
    """Distinct pairs of an adjective and a noun, at most 576."""
    numbers = random.choice(KEYS, size=count, replace=False)
    return [f"{ADJECTIVES[number // len(NOUNS)]} {NOUNS[number % len(NOUNS)]}" for number in numbers.tolist()]


def draw_numbers(random: np.random.Generator, count: int) -> list[str]:
    """Distinct numbers of seven digits."""
    return _distinct(lambda size: [str(n) for n in random.integers(10**6, 10**7, size=size).tolist()], count)


def draw_names(random: np.random.Generator, count: int) -> list[str]:
    """Distinct names of five capital letters."""
    return _distinct(lambda size: _joined(_CAPITALS[random.integers(26, size=(size, 5))]), count)


def draw_words(random: np.random.Generator, count: int) -> list[str]:
    """Distinct made-up words of eight letters, of 24,010,000."""
    return _distinct(lambda size: _joined(_SYLLABLES[random.integers(len(_SYLLABLES), size=(size, 4))]), count)


def _joined(parts: np.ndarray) -> list[str]:
    """The texts of each row of texts of equal length."""
    rows, columns = parts.shape
    return parts.view(f"U{columns * parts.itemsize // 4}").reshape(rows).tolist()


def _distinct(draw: Callable[[int], list[str]], count: int) -> list[str]:
    """`count` different texts from `draw(size)`, in the order in which they first occur."""
    found = dict.fromkeys(draw(count))
    while len(found) < count:
        found |= dict.fromkeys(draw(count - len(found)))
    return list(found)
