"""Copy: read a random string in some windows, then repeat it window by window after their eviction.

Layout. The string in `windows_of_string` windows of `window` symbols, padded on the right. Then one window for each of them:
window j is [Q_j, s0, s1, ...] with targets s0, s1, s2, ..., where s0, s1, ... are the symbols of window j. A window of which
a shorter string has no symbols is all padding.

Ids: `symbols` symbols from 0, then PAD, then Q_0, Q_1, ...

Splits. A string belongs to the test split with probability 1/holdout, by a hash of its symbols. No test string occurs in
training, whatever the seeds.

`groups` holds n at every target. Label: `n`. An answer is the part of the string in one window; the share of exact answers is
the share of windows repeated without an error.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from string import ascii_lowercase
from typing import Any

import numpy as np

from sleep_data.hashing import fold, is_test
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
class Copy(GeneratedTask):
    """Parameters of the task."""

    lengths: int | tuple[int, ...] = (32, 64, 96, 128)
    """Symbols n of a string; if there are several lengths, each sample draws one of them."""
    symbols: int = 26
    window: int = 32
    windows_of_string: int = 4
    holdout: int = 16
    """One string in this many belongs to the test split."""

    def __post_init__(self) -> None:
        if not isinstance(self.lengths, int):
            object.__setattr__(self, "lengths", tuple(self.lengths))
        for name, least in (("symbols", 2), ("window", 1), ("windows_of_string", 1)):
            raise_if(getattr(self, name) < least, f"{name} is {getattr(self, name)}; it must be at least {least}")
        raise_if(
            self.holdout < 2, f"holdout is {self.holdout}; it must be at least 2 (half of the strings for the test)"
        )
        lengths = self._lengths
        raise_if(not lengths, "lengths is empty; give one or more numbers of symbols")
        raise_if(len(set(lengths)) < len(lengths), f"lengths is {list(lengths)}; a number is listed twice")
        raise_if(
            min(lengths) < 1 or max(lengths) > self._room,
            f"lengths is {self.lengths}; a string has 1 to {self._room} symbols, which {self.windows_of_string} windows of "
            f"{self.window} hold; take more or longer windows",
        )
        # With so many strings it is certain, up to e^-64, that both splits have some.
        raise_if(
            self.symbols ** min(lengths) < 64 * self.holdout,
            f"lengths is {self.lengths}: there are too few strings of {min(lengths)} of {self.symbols} symbols for two splits; "
            "take longer strings, more symbols or a smaller holdout",
        )

    name = "copy"
    version = 1
    label = "n"

    @property
    def _lengths(self) -> tuple[int, ...]:
        """All values of n."""
        return (self.lengths,) if isinstance(self.lengths, int) else self.lengths

    @property
    def _room(self) -> int:
        """Tokens of the windows that hold the string."""
        return self.window * self.windows_of_string

    def labels(self) -> dict[str, str]:
        return {"n": "symbols of the string"}

    def parameters(self) -> dict[str, Any]:
        return asdict(self) | {"lengths": self.lengths if isinstance(self.lengths, int) else list(self._lengths)}

    def vocabulary(self) -> Vocabulary:
        letters = ascii_lowercase if self.symbols <= len(ascii_lowercase) else map(str, range(self.symbols))
        symbols = [*letters][: self.symbols] + ["PAD", *(f"Q{j}" for j in range(self.windows_of_string))]
        return Vocabulary("symbols", tuple(symbols), len(symbols), self.symbols)

    def windows(self) -> tuple[TaskWindow, ...]:
        size, count = self.window, self.windows_of_string
        context = (TaskWindow(j * size, (j + 1) * size, False) for j in range(count))
        answers = (TaskWindow(j * size, (j + 1) * size, True, (j - count,)) for j in range(count, 2 * count))
        return (*context, *answers)

    def baselines(self) -> dict[str, dict[str, float]]:
        """Of a random guess. All symbols are equally frequent, so that always giving one of them is right as often."""
        table = {}
        for n in self._lengths:
            sizes = [min(self.window, n - start) for start in range(0, n, self.window)]
            exact = sum(self.symbols**-size for size in sizes) / len(sizes)
            chance = 1 / self.symbols
            table[str(n)] = {
                "chance": chance, "majority": chance, "exact_chance": exact, "exact_majority": exact
            }  # fmt: skip
        return table

    def block(self, split: str, number: int, seed: int) -> Arrays:
        """The samples of one block, without ids."""
        random = generator(self.name, seed, split, number)
        n = random.choice(self._lengths, size=BLOCK).astype(np.int32)
        string = self._draw_strings(random, n, split == "test")
        pad = self.symbols
        first = np.arange(self._room) % self.window == 0
        query = pad + 1 + np.arange(self._room) // self.window
        before = np.concatenate([string[:, :1], string[:, :-1]], axis=1)
        answers = np.where(string == pad, pad, np.where(first, query, before))
        unscored = np.full(string.shape, IGNORED)
        targets = np.concatenate([unscored, np.where(string == pad, IGNORED, string)], axis=1)
        return {
            "tokens": np.concatenate([string, answers], axis=1).astype(np.int32),
            "targets": targets.astype(np.int32),
            "groups": np.where(targets == IGNORED, NO_GROUP, n[:, None]).astype(np.int32),
            "label_n": n,
        }

    def _draw_strings(self, random: np.random.Generator, n: np.ndarray, test: bool) -> np.ndarray:
        """Random strings of a split [BLOCK, room], of n[row] symbols each and padded on the right."""
        strings = np.empty((BLOCK, self._room), np.int64)
        missing = np.arange(BLOCK)
        while len(missing):
            drawn = random.integers(self.symbols, size=(len(missing), self._room))
            drawn[np.arange(self._room) >= n[missing, None]] = self.symbols
            accepted = is_test(fold(drawn), self.holdout) == test
            strings[missing[accepted]] = drawn[accepted]
            missing = missing[~accepted]
        return strings
