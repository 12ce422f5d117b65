"""Rule 110 on a ring: read one bit string in each window, then predict its first cell, or all cells, after t steps.

Cell i of the next state is 1 unless (left, centre, right) is 111, 100 or 000. The ring is periodic: the left neighbour of
cell 0 is the last cell.

Layouts (S strings of `width` cells, t from `transitions`):

* `variant: paper`, `transitions: 32`     S windows of [bits], then [Q, l0 .. l(S-2)] with targets l0 .. l(S-1), where li is
  cell 0 of string i after t steps. Ids: 0, 1, Q = 2, PAD = 3.
* `variant: paper`, `transitions: [4, 8]` t is drawn for each sample and is the first token of each window, since the model
  needs it while it sleeps: S windows of [T_t, bits]. Ids of T_t follow PAD, in the order of the list.
* `variant: dense`    S windows of [T_t, bits], then S windows of [Q_j, CELL x width] of the same length, in which the target
  at position 1 + i is cell i of string j after t steps. CELL follows the T_t, the Q_j follow CELL; id 2 is not used.

Splits. A string belongs to the test split with probability 1/holdout, by a hash of its bits. A sample draws all its strings
from its own split, so that no string of a test sample occurs in a training sample, whatever the seeds. Rotations of a string
are different strings, and may belong to the other split.

`groups` holds t at every target. Label: `t`.
"""

from __future__ import annotations

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
    GeneratedTask,
    TaskWindow,
    Vocabulary,
    generator,
    raise_if,
)

QUERY, PAD = 2, 3


@dataclass(frozen=True)
class Rule110(GeneratedTask):
    """Parameters of the task; the defaults are those of the sleep paper (arXiv 2605.26099, section 6.1)."""

    strings: int = 4
    width: int = 24
    transitions: int | tuple[int, ...] = 32
    """Number of steps t; if there are several, each sample draws one of them."""
    variant: str = "paper"
    """Scored cells: the first of each string (paper), or all (dense)."""
    holdout: int = 16
    """One string in this many belongs to the test split."""

    def __post_init__(self) -> None:
        if not isinstance(self.transitions, int):
            object.__setattr__(self, "transitions", tuple(self.transitions))
        raise_if(self.strings < 1, f"strings is {self.strings}; at least 1 string is needed")
        raise_if(not 3 <= self.width <= 64, f"width is {self.width}; it must be between 3 and 64 cells")
        raise_if(self.variant not in ("paper", "dense"), f"variant is {self.variant!r}; it must be paper or dense")
        raise_if(
            self.holdout < 2, f"holdout is {self.holdout}; it must be at least 2 (half of the strings for the test)"
        )
        steps = self._steps
        raise_if(
            not steps or min(steps) < 0, f"transitions is {self.transitions}; give one or more numbers of at least 0"
        )
        raise_if(len(set(steps)) < len(steps), f"transitions is {list(steps)}; a number is listed twice")
        if self.width <= 12:
            held = is_test(mix(np.arange(2**self.width)), self.holdout)
            raise_if(
                bool(held.all() or not held.any()),
                f"holdout is {self.holdout}: of the {2**self.width} strings of width {self.width} none would be left for "
                "one of the splits; take a smaller holdout or a larger width",
            )

    name = "rule110"
    version = 2
    label = "t"

    @property
    def _steps(self) -> tuple[int, ...]:
        """All values of t."""
        return (self.transitions,) if isinstance(self.transitions, int) else self.transitions

    @property
    def _shows_t(self) -> bool:
        """Whether t is the first token of each window."""
        return self.variant == "dense" or not isinstance(self.transitions, int)

    def labels(self) -> dict[str, str]:
        return {"t": "transitions between the strings and the answer"}

    def parameters(self) -> dict[str, Any]:
        fixed = isinstance(self.transitions, int)
        return asdict(self) | {"transitions": self.transitions if fixed else list(self._steps)}

    def vocabulary(self) -> Vocabulary:
        symbols = ["0", "1", "Q", "PAD"]
        if self._shows_t:
            symbols += [f"T{t}" for t in self._steps]
        if self.variant == "dense":
            symbols += ["CELL"] + [f"Q{j}" for j in range(self.strings)]
        query = QUERY if self.variant == "paper" else None
        return Vocabulary("symbols", tuple(symbols), len(symbols), PAD, query)

    def windows(self) -> tuple[TaskWindow, ...]:
        length = self.width + self._shows_t
        context = [TaskWindow(j * length, (j + 1) * length, False) for j in range(self.strings)]
        end = self.strings * length
        if self.variant == "paper":
            return (*context, TaskWindow(end, end + self.strings, True))
        queries = (TaskWindow(end + j * length, end + (j + 1) * length, True, (j,)) for j in range(self.strings))
        return (*context, *queries)

    def baselines(self) -> dict[str, dict[str, float]]:
        return baselines.rule110(self.width, self._steps, self.strings, dense=self.variant == "dense")

    def block(self, split: str, number: int, seed: int) -> Arrays:
        """The samples of one block, without ids."""
        random = generator(self.name, seed, split, number)
        cells = self._draw_strings(random, split == "test")
        step_index = random.integers(len(self._steps), size=BLOCK)
        t = np.array(self._steps, np.int32)[step_index]
        answers = evolve(cells, t)
        t_tokens = np.broadcast_to((step_index + PAD + 1)[:, None, None], (BLOCK, self.strings, 1))
        parts = [t_tokens, cells] if self._shows_t else [cells]
        context = np.concatenate(parts, axis=2).reshape(BLOCK, -1)
        queries, answer_targets = (
            self._paper_queries(answers) if self.variant == "paper" else self._dense_queries(answers)
        )
        targets = np.concatenate([np.full(context.shape, IGNORED), answer_targets], axis=1)
        return {
            "tokens": np.concatenate([context, queries], axis=1).astype(np.int32),
            "targets": targets.astype(np.int32),
            "groups": np.where(targets == IGNORED, NO_GROUP, t[:, None]).astype(np.int32),
            "label_t": t,
        }

    def _draw_strings(self, random: np.random.Generator, test: bool) -> np.ndarray:
        """Random strings of a split, as cells uint8 [BLOCK, strings, width]; cell i is bit i of the number that is hashed."""
        count = BLOCK * self.strings
        accepted = np.empty(0, np.uint64)
        share = 1 / self.holdout if test else 1 - 1 / self.holdout
        while len(accepted) < count:
            tries = int((count - len(accepted)) / share * 1.1) + 16
            numbers = random.integers(2**self.width - 1, size=tries, dtype=np.uint64, endpoint=True)
            accepted = np.concatenate([accepted, numbers[is_test(mix(numbers), self.holdout) == test]])
        numbers = accepted[:count].reshape(BLOCK, self.strings, 1)
        return ((numbers >> np.arange(self.width, dtype=np.uint64)) & np.uint64(1)).astype(np.uint8)

    def _paper_queries(self, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and targets of the last window: [Q, answers but the last] and the first cell of every string."""
        first = answers[:, :, 0]
        return np.concatenate([np.full((BLOCK, 1), QUERY), first[:, :-1]], axis=1), first

    def _dense_queries(self, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and targets of one window for each string: [Q_j, CELL x width] and all its cells."""
        cell = PAD + 1 + len(self._steps)
        tokens = np.full((BLOCK, self.strings, self.width + 1), cell)
        tokens[:, :, 0] = cell + 1 + np.arange(self.strings)
        unscored = np.full((BLOCK, self.strings, 1), IGNORED)
        targets = np.concatenate([unscored, answers], axis=2)
        return tokens.reshape(BLOCK, -1), targets.reshape(BLOCK, -1)


def step(cells: np.ndarray) -> np.ndarray:
    """The next state of rings of cells (0 or 1) along the last axis."""
    left, right = np.roll(cells, 1, axis=-1), np.roll(cells, -1, axis=-1)
    return (cells | right) ^ (left & cells & right)


def evolve(cells: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """States of rings [rows, strings, width] after steps[row] transitions."""
    result = cells.copy()
    state = cells
    for t in range(1, int(steps.max(initial=0)) + 1):
        state = step(state)
        result[steps == t] = state[steps == t]
    return result
