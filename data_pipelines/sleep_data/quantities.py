"""Random quantities that are computed from each other with a chosen number of operations, and how their sentences read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

LARGEST = 1000
"""Largest value of a quantity."""
SHARED = 0.3
"""Probability that an operand is a quantity that is used already."""
TOTALS = 0.25
"""Probability that a quantity becomes a total, where it can."""
MOST = 3
"""Most operations of a quantity."""


@dataclass(eq=False)
class Quantity:
    """A number, given or computed from operands.

    The operands are combined ("sum", "difference", "total"; "" for one or none), and the constant is added or multiplied, if `by` says
    so. The members of a total are all quantities of one place, and no sentence of the text says how it is computed.
    """

    combined: str = ""
    by: str = ""
    """plus, times, or "" for neither"""
    constant: int = 0
    operands: list[Quantity] = field(default_factory=list)
    total: Quantity | None = None
    """The total of which it is a member."""
    value: int = 0
    name: str = ""
    """As it stands in the text."""

    @property
    def is_total(self) -> bool:
        """Whether it is the total of a place."""
        return self.combined == "total"

    def evaluate(self) -> bool:
        """Set the value from those of the operands; false if it is not between 1 and LARGEST."""
        values = [operand.value for operand in self.operands]
        if self.combined == "difference" and values[0] < values[1]:
            self.operands.reverse()
        inner = abs(values[0] - values[1]) if self.combined == "difference" else sum(values)
        self.value = inner * self.constant if self.by == "times" else inner + self.constant
        return 1 <= self.value <= LARGEST

    def slope(self, slopes: Mapping[Quantity, int]) -> int:
        """How much it grows with some unknown number, given how much the operands do."""
        parts = [slopes[operand] for operand in self.operands]
        inner = parts[0] - parts[1] if self.combined == "difference" else sum(parts)
        return inner * self.constant if self.by == "times" else inner

    def sentence(self) -> str:
        """How it is computed, as a sentence; not for totals."""
        names = [operand.name for operand in self.operands]
        listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
        inner = {"": listed, "sum": f"the sum of {listed}", "difference": f"the difference between {listed}"}[
            self.combined
        ]
        words = [str(self.constant)] * bool(self.constant) + [self.by] * bool(self.by) + [inner] * bool(inner)
        return f"{self.name[0].upper()}{self.name[1:]} equals {' '.join(words)}."


def draw_quantities(random: np.random.Generator, operations: int) -> list[Quantity]:
    """Quantities in an order in which each follows its operands; the last one takes all of them and `operations` operations.

    An operation is the addition, subtraction or multiplication of two numbers. Values are between 1 and LARGEST, and given
    numbers between 1 and 9.
    """
    while True:
        defined = _draw_structure(random, operations)
        if all(quantity.evaluate() for quantity in reversed(defined)):
            return defined[::-1]


def _draw_structure(random: np.random.Generator, operations: int) -> list[Quantity]:
    """Quantities without values, the last one of the order first."""
    waiting, defined, left = [Quantity()], list[Quantity](), operations
    while waiting:
        quantity = waiting.pop(random.integers(len(waiting)))
        defined.append(quantity)
        # The last one that waits has to take an operation, or the others would have nobody to belong to.
        fewest = int(left > 0 and not waiting)
        taken = int(random.integers(fewest, min(left, MOST) + 1)) if left else 0
        left -= taken
        if taken and quantity.total is None and random.random() < TOTALS:
            quantity.combined = "total"
            quantity.operands = [Quantity(total=quantity) for _ in range(taken + 1)]
            waiting += quantity.operands
        else:
            _define(random, quantity, taken, waiting)
    return defined


def _define(random: np.random.Generator, quantity: Quantity, operations: int, waiting: list[Quantity]) -> None:
    """Make a quantity a given number, or let it take some operations and its operands wait for their own definition."""
    if not operations:
        quantity.constant = int(random.integers(1, 10))
        return
    with_constant = operations == MOST or random.random() < 0.5
    if with_constant:
        quantity.by = ("plus", "times")[random.integers(2)]
        quantity.constant = int(random.integers(1, 10) if quantity.by == "plus" else random.integers(2, 5))
    count = operations + 1 - with_constant
    if count > 1:
        quantity.combined = "difference" if count == 2 and random.random() < 0.5 else "sum"
    old = list(waiting)
    for _ in range(count):
        if old and random.random() < SHARED:
            quantity.operands.append(old.pop(random.integers(len(old))))
        else:
            quantity.operands.append(Quantity())
            waiting.append(quantity.operands[-1])


def depends(quantities: Sequence[Quantity], given: Quantity) -> bool:
    """Whether the last of some quantities, in the order of `draw_quantities`, changes with a given number."""
    slopes: dict[Quantity, int] = {}
    for quantity in quantities:
        slopes[quantity] = 1 if quantity is given else quantity.slope(slopes)
    return slopes[quantities[-1]] != 0
