"""The moment at which a stage needs most memory: values that it holds, gradients of weights, and temporaries of single blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sleeptrain.schedule.schedule import ScheduleAction


@dataclass(frozen=True)
class Temporaries:
    """What the actions of a stage need beside the values that they read and write, in bytes of all rows."""

    blocks: Sequence[float]
    """Temporaries of every block of the stack, forward or backward."""
    head: float
    """Those of the head, its graph included where it is not a value."""
    embed: float
    """The gradient of the embedding, beside those of the block above it."""
    grads: Sequence[float]
    """Gradients of the weights of every block that its first backward allocates, to be kept until the end."""
    head_grads: float
    embed_grads: float


@dataclass(frozen=True)
class Moment:
    """Bytes at one moment of an action."""

    released: float = 0.0
    """Of saved activations that this action has released by then, or that do not exist yet."""
    grads: float = 0.0
    """Gradients of weights."""
    work: float = 0.0
    """Temporaries."""


class StageMoments:
    """The moments of one stage's actions. Gradients of weights come into being as backward reaches them, block by block."""

    def __init__(self, temporaries: Temporaries) -> None:
        self._of, self._grads = temporaries, 0.0
        self._reached: set[int | str] = set()

    def of(
        self, action: ScheduleAction, backward: bool, blocks: range, embeds: bool, graphs: Sequence[float], absent: float = 0.0
    ) -> Iterator[Moment]:  # fmt: skip
        """Those of one action, to be called for all in their order.

        `blocks`: of the stage op; `embeds`: it embeds the tokens. `graphs`: what its backward releases after each of them, in their
        order, or of the head; empty: nothing. `absent`: what counts as held and does not exist yet while the head runs.
        """
        if action.edge is not None:
            yield Moment(grads=self._grads)
        elif action.kind == "LOSS":
            yield Moment(absent, self._grads, self._of.head)
            if backward:
                yield from self._reach("head", self._of.head_grads, absent + sum(graphs))
        elif action.kind != "BWD":
            yield Moment(grads=self._grads, work=max(self._of.blocks[b] for b in blocks))
        else:
            released = 0.0
            for place in reversed(range(len(blocks))):
                block = blocks[place]
                embedding = self._of.embed if embeds and place == 0 else 0.0
                yield Moment(released, self._grads, self._of.blocks[block] + embedding)
                released += graphs[place] if graphs else 0.0
                yield from self._reach(block, self._of.grads[block], released)
            if embeds:
                yield from self._reach("embed", self._of.embed_grads, released)

    def _reach(self, what: int | str, size: float, released: float) -> Iterator[Moment]:
        """The gradient that backward has computed is copied where it is the first one."""
        if what not in self._reached:
            self._reached.add(what)
            self._grads += size
            yield Moment(released, self._grads, size)


def largest(
    deltas: Iterable[Iterable[tuple[str, float]]], moments: Iterable[Iterable[Moment]], released: str
) -> tuple[Mapping[str, float], Moment]:
    """Bytes by component, and the moment, when their sum is largest.

    `deltas`: changes of the components at every action; `moments`: those of every action; `released`: the component from which moments
    release.
    """
    current: dict[str, float] = {}
    peak, most, total, at_peak = dict(current), -1.0, 0.0, Moment()
    for changes, during in zip(deltas, moments, strict=True):
        for component, size in changes:
            current[component] = current.get(component, 0.0) + size
            total += size
        for moment in during:
            needed = total - moment.released + moment.grads + moment.work
            if needed > most:
                peak, most, at_peak = dict(current), needed, moment
    peak[released] = peak.get(released, 0.0) - at_peak.released
    return peak, at_peak
