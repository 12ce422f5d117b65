"""Rule 110 on a ring: read bit strings, one a window, and say their first cells (or all cells) after t steps.

Cell i of the next state is 1 unless (left, centre, right) is 111, 100 or 000. The ring is periodic: the left neighbour of
cell 0 is the last cell.

Layouts (S strings of `width` cells, t from `transitions`):

* `variant: paper`, `transitions: 32`     S windows of [bits], then [Q, l0 .. l(S-2)] with targets l0 .. l(S-1), where li is
  cell 0 of string i after t steps. Ids: 0, 1, Q = 2, PAD = 3.
* `variant: paper`, `transitions: [4, 8]` t is drawn for each sample and said at the start of each window, since the state
  has to know it while it sleeps: S windows of [T_t, bits]. Ids of T_t follow PAD, in the order of the list.
* `variant: dense`    S windows of [T_t, bits], then S windows of [Q_j, CELL x width] of the same length, in which the target
  at position 1 + i is cell i of string j after t steps. CELL follows the T_t, the Q_j follow CELL; id 2 is not used.

Splits. Every single string belongs to the test split with probability 1/holdout, decided by a hash of its bits alone, and
a sample draws all its strings from its own split. So no string of any test sample occurs in any training sample, whatever
the seeds. (A rotation of a test string may: the position of the cells is part of the string.)

`groups` holds t wherever a cell is the target. Label: `t`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sleep_data import baselines
from sleep_data.hashing import is_test, mix
from sleep_data.task import (
    BLOCK,
    IGNORED,
    NO_GROUP,
    Arrays,
    Vocabulary,
    Window,
    cut,
    generator,
    in_blocks,
    require,
)

QUERY, PAD = 2, 3


@dataclass(frozen=True)
class Rule110:
    """Parameters of the task; the defaults are those of the sleep paper (arXiv 2605.26099, section 6.1)."""

    strings: int = 4
    width: int = 24
    transitions: int | tuple[int, ...] = 32
    """t: one number, or several to draw from for each sample."""
    variant: str = "paper"
    """paper: the first cell of each string; dense: every cell of every string."""
    holdout: int = 16
    """One string out of this many belongs to the test split."""

    def __post_init__(self) -> None:
        if not isinstance(self.transitions, int):
            object.__setattr__(self, "transitions", tuple(self.transitions))
        require(self.strings < 1, f"strings is {self.strings}; at least 1 string is needed")
        require(not 3 <= self.width <= 64, f"width is {self.width}; it must be between 3 and 64 cells")
        require(self.variant not in ("paper", "dense"), f"variant is {self.variant!r}; it must be paper or dense")
        require(
            self.holdout < 2, f"holdout is {self.holdout}; it must be at least 2 (half of the strings for the test)"
        )
        steps = self._steps
        require(
            not steps or min(steps) < 0, f"transitions is {self.transitions}; give one or more numbers of at least 0"
        )
        require(len(set(steps)) < len(steps), f"transitions is {list(steps)}; a number occurs twice")
        if self.width <= 12:
            held = is_test(mix(np.arange(2**self.width)), self.holdout)
            require(
                bool(held.all() or not held.any()),
                f"holdout is {self.holdout}: of the {2**self.width} strings of width {self.width} none would be left for "
                "one of the splits; choose a smaller holdout or a larger width",
            )

    name = "rule110"
    version = 1
    label = "t"

    @property
    def _steps(self) -> tuple[int, ...]:
        return (self.transitions,) if isinstance(self.transitions, int) else self.transitions

    @property
    def _says_t(self) -> bool:
        return self.variant == "dense" or not isinstance(self.transitions, int)

    def labels(self) -> dict[str, str]:
        return {"t": "transitions between the strings and the answer"}

    def parameters(self) -> dict[str, Any]:
        fixed = isinstance(self.transitions, int)
        return asdict(self) | {"transitions": self.transitions if fixed else list(self._steps)}

    def inputs(self) -> None:
        return None

    def vocabulary(self) -> Vocabulary:
        symbols = ["0", "1", "Q", "PAD"]
        if self._says_t:
            symbols += [f"T{t}" for t in self._steps]
        if self.variant == "dense":
            symbols += ["CELL"] + [f"Q{j}" for j in range(self.strings)]
        query = QUERY if self.variant == "paper" else None
        return Vocabulary("symbols", tuple(symbols), len(symbols), PAD, query)

    def windows(self) -> tuple[Window, ...]:
        length = self.width + self._says_t
        read = [Window(j * length, (j + 1) * length, False) for j in range(self.strings)]
        end = self.strings * length
        if self.variant == "paper":
            return (*read, Window(end, end + self.strings, True))
        return (*read, *(Window(end + j * length, end + (j + 1) * length, True) for j in range(self.strings)))

    def generate(self, split: str, start: int, stop: int, seed: int = 0) -> Arrays:
        """Samples [start, stop) of a split."""
        return cut(lambda block: self._block(split, block, seed), start, stop)

    def blocks(self, split: str, samples: int | None, seed: int) -> Iterator[Arrays]:
        return in_blocks(self.generate, split, samples, seed)

    def baselines(self) -> dict[str, dict[str, float]]:
        cells = self.strings if self.variant == "paper" else self.width
        return baselines.rule110(self.width, self._steps, cells)

    def _block(self, split: str, block: int, seed: int) -> Arrays:
        random = generator(self.name, seed, split, block)
        cells = self._draw(random, split == "test")
        which = random.integers(len(self._steps), size=BLOCK)
        t = np.array(self._steps, np.int32)[which]
        answers = evolve(cells, t)
        parts = [np.broadcast_to((which + PAD + 1)[:, None, None], (BLOCK, self.strings, 1))] * self._says_t + [cells]
        context = np.concatenate(parts, axis=2).reshape(BLOCK, -1)
        lay_out = self._paper if self.variant == "paper" else self._dense
        tail, scored = lay_out(answers)
        silent = np.full(context.shape, IGNORED)
        targets = np.concatenate([silent, scored], axis=1)
        return {
            "tokens": np.concatenate([context, tail], axis=1).astype(np.int32),
            "targets": targets.astype(np.int32),
            "groups": np.where(targets == IGNORED, NO_GROUP, t[:, None]).astype(np.int32),
            "label_t": t,
        }

    def _draw(self, random: np.random.Generator, test: bool) -> np.ndarray:
        """Cells uint8 [BLOCK, strings, width] of strings that belong to the split; cell i is bit i of the number hashed."""
        wanted = BLOCK * self.strings
        found = np.empty(0, np.uint64)
        share = 1 / self.holdout if test else 1 - 1 / self.holdout
        while len(found) < wanted:
            tries = int((wanted - len(found)) / share * 1.1) + 16
            numbers = random.integers(2**self.width - 1, size=tries, dtype=np.uint64, endpoint=True)
            found = np.concatenate([found, numbers[is_test(mix(numbers), self.holdout) == test]])
        numbers = found[:wanted].reshape(BLOCK, self.strings, 1)
        return ((numbers >> np.arange(self.width, dtype=np.uint64)) & np.uint64(1)).astype(np.uint8)

    def _paper(self, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first = answers[:, :, 0]
        return np.concatenate([np.full((BLOCK, 1), QUERY), first[:, :-1]], axis=1), first

    def _dense(self, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cell = PAD + 1 + len(self._steps)
        tail = np.full((BLOCK, self.strings, self.width + 1), cell)
        tail[:, :, 0] = cell + 1 + np.arange(self.strings)
        unscored = np.full((BLOCK, self.strings, 1), IGNORED)
        scored = np.concatenate([unscored, answers], axis=2)
        return tail.reshape(BLOCK, -1), scored.reshape(BLOCK, -1)


def step(cells: np.ndarray) -> np.ndarray:
    """The next state of rings of cells (0 or 1) along the last axis."""
    left, right = np.roll(cells, 1, axis=-1), np.roll(cells, -1, axis=-1)
    return (cells | right) ^ (left & cells & right)


def evolve(cells: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """States of rings [rows, strings, width] after steps[row] transitions."""
    done = cells.copy()
    state = cells
    for t in range(1, int(steps.max(initial=0)) + 1):
        state = step(state)
        done[steps == t] = state[steps == t]
    return done
