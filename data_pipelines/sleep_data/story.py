"""Random stories of people who go to places and carry objects, and questions about them."""

from __future__ import annotations

import numpy as np

PEOPLE = ("Anna", "Boris", "Clara", "David")
PLACES = ("attic", "barn", "cellar", "garden", "hall", "kitchen", "library", "workshop")
OBJECTS = ("coin", "key", "lamp", "rope")
GOES = ("went to", "walked to", "moved to", "hurried to")
TAKES = ("picked up", "took", "grabbed")
LEAVES = ("put down", "dropped", "left")


class Story:
    """A story of a number of events, in which every event is possible after those before it."""

    def __init__(self, random: np.random.Generator, events: int) -> None:
        """Draw the events: moves, and where one is possible, with probability 0.35 a pick-up and 0.15 a put-down.

        An object lies at a random place that nobody knows, until it is picked up.
        """
        self.sentences: list[str] = []
        """The events in order."""
        self._place: dict[int, int] = {}
        """Place of each person with a known one."""
        self._visited: dict[int, list[int]] = {}
        """Places of each object that was picked up, in order."""
        self._lies = dict(enumerate(random.integers(len(PLACES), size=len(OBJECTS)).tolist()))
        """Place of each object that nobody carries."""
        self._carrier: dict[int, int] = {}
        """Who carries each of the other objects."""
        for draw in random.random((events, 4)).tolist():
            self._add(*draw)

    def _add(self, kind: float, who: float, what: float, verb: float) -> None:
        """One event, chosen by four numbers in [0, 1)."""
        within_reach = [(p, o) for o, place in self._lies.items() for p in self._place if self._place[p] == place]
        carried = [(p, o) for o, p in self._carrier.items()]
        if kind < 0.35 and within_reach:
            person, thing = within_reach[int(who * len(within_reach))]
            place = self._lies.pop(thing)
            self._carrier[thing] = person
            self._visited.setdefault(thing, [place])
            self._tell(person, TAKES, verb, OBJECTS[thing])
        elif 0.35 <= kind < 0.5 and carried:
            person, thing = carried[int(who * len(carried))]
            del self._carrier[thing]
            self._lies[thing] = self._place[person]
            self._tell(person, LEAVES, verb, OBJECTS[thing])
        else:
            person = int(who * len(PEOPLE))
            places = [place for place in range(len(PLACES)) if place != self._place.get(person)]
            place = places[int(what * len(places))]
            self._place[person] = place
            for thing, carrier in self._carrier.items():
                if carrier == person:
                    self._visited[thing].append(place)
            self._tell(person, GOES, verb, PLACES[place])

    def _tell(self, person: int, verbs: tuple[str, ...], verb: float, thing: str) -> None:
        self.sentences.append(f"{PEOPLE[person]} {verbs[int(verb * len(verbs))]} the {thing}.")

    def ask(self, random: np.random.Generator, kind: int) -> tuple[str, str] | None:
        """A random question of a kind and its answer; None if the story does not allow one."""
        if kind == 1:
            person = random.choice(list(self._place))
            return f"Where is {PEOPLE[person]}?", PLACES[self._place[person]]
        things = [thing for thing, places in self._visited.items() if len(places) >= kind - 1]
        if not things:
            return None
        thing = random.choice(things)
        places = self._visited[thing]
        if kind == 2:
            return f"Where is the {OBJECTS[thing]}?", PLACES[places[-1]]
        goal = random.choice(places[1:])
        last = len(places) - 1 - places[::-1].index(goal)
        before = PLACES[places[last - 1]]
        return f"Where was the {OBJECTS[thing]} before it was last brought to the {PLACES[goal]}?", before
