"""Names for the quantities of word problems, animals in places, and sentences about other places that distract."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from sleep_data.quantities import Quantity

ANIMALS = (
    "badgers", "beavers", "cranes", "eagles", "foxes", "geese", "hares", "herons", "lizards", "otters", "owls", "ponies",
    "ravens", "squirrels", "turtles", "wolves",
)  # fmt: skip
FIRST = (
    "Ash", "Birch", "Clear", "Cold", "Deep", "East", "Fern", "Gold", "Green", "High", "Iron", "Long", "Maple", "Mill", "North",
    "Oak", "Pine", "Red", "Rock", "Sand", "South", "Stone", "West", "White",
)  # fmt: skip
SECOND = (
    "Bay", "Bridge", "Cape", "Creek", "Dale", "Falls", "Field", "Ford", "Forest", "Glen", "Grove", "Harbor", "Heath", "Hill",
    "Lake", "Marsh", "Meadow", "Moor", "Point", "Ridge", "River", "Shore", "Valley", "Wood",
)  # fmt: skip
PLACES = len(FIRST) * len(SECOND)
PER_PLACE = 4
"""Quantities of a place that has no total, on average, and places of distractors that stand near each other."""
NEAR = 8
"""Distractors are computed from the quantities of the problem and this number of distractors before them."""


def name_quantities(random: np.random.Generator, quantities: Sequence[Quantity]) -> np.ndarray:
    """Name all quantities; return all places in random order, of which as many as there are quantities may be in use.

    A total has a place of its own, where only its members are. All other quantities share some further places.
    """
    places = random.permutation(PLACES)
    totals = [quantity for quantity in quantities if quantity.is_total]
    others = [quantity for quantity in quantities if not quantity.is_total and quantity.total is None]
    for place, total in zip(places, totals, strict=False):
        total.name = f"the total number of animals in {_place(place)}"
        for animal, member in zip(random.permutation(len(ANIMALS)), total.operands, strict=False):
            member.name = _number(animal, place)
    shared = 1 + len(others) // PER_PLACE
    pairs = random.permutation(shared * len(ANIMALS))
    for pair, quantity in zip(pairs, others, strict=False):
        quantity.name = _number(pair % len(ANIMALS), places[len(totals) + pair // len(ANIMALS)])
    return places


def _place(place: int) -> str:
    return f"{FIRST[place // len(SECOND)]} {SECOND[place % len(SECOND)]}"


def _number(animal: int, place: int) -> str:
    return f"the number of {ANIMALS[animal]} in {_place(place)}"


def distractors(random: np.random.Generator, quantities: Sequence[Quantity], places: np.ndarray) -> Iterator[str]:
    """Sentences about animals in the places that the quantities leave, until all of them are used."""
    near = list(quantities)
    free = places[len(quantities) + 1 :]
    for start in range(0, len(free), PER_PLACE):
        together = free[start : start + PER_PLACE].tolist()
        for pair in random.permutation(len(together) * len(ANIMALS)).tolist():
            quantity = _distractor(random, near)
            quantity.name = _number(pair % len(ANIMALS), together[pair // len(ANIMALS)])
            yield quantity.sentence()
            near = near[: len(quantities)] + [*near[len(quantities) :], quantity][-NEAR:]


def _distractor(random: np.random.Generator, near: Sequence[Quantity]) -> Quantity:
    """A quantity without a name that is given, or computed from one or two of some others."""
    form = random.integers(4)
    chosen = [near[i] for i in random.permutation(len(near))[:2].tolist()]
    if form == 0:
        return Quantity(constant=int(random.integers(1, 10)))
    if form == 1 and len(chosen) == 2:
        return Quantity("sum", operands=chosen)
    return Quantity("", "times" if form == 2 else "plus", int(random.integers(2, 5)), chosen[:1])
