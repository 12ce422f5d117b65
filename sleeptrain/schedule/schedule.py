"""Who does what, in which order: the actions of every stage over one group of micro-batches, and what they keep.

A program says what happens to one batch; a schedule says how the stages of a pipeline do it for a group of micro-batches,
forward and backward. It is data: the trainer carries it out, `check` proves it, `price` and `draw` read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple

from sleeptrain.program.config import Sleep
from sleeptrain.program.program import Boundary, Layers, Program, loop_range

ActionKind = Literal["FWD", "RECOMPUTE", "BWD", "SEND", "RECV", "LOSS", "REDUCE"]
Granularity = Literal["pass", "window"]
Direction = Literal["forward", "backward", "reduce"]


@dataclass(frozen=True)
class RecomputePolicy:
    """What is kept for backward; everything else is computed again. Features that another stage sent are always kept."""

    h: Granularity = "pass"
    """Features entering every pass, or only those at window starts."""
    S: Granularity = "pass"
    """State entering every pass, or only that at window starts."""
    body: Literal["none", "block", "all"] = "none"
    """What else is kept of an item: nothing, the input of every block, or its whole graph."""
    offload: bool = False
    """What waits for backward does so in the host's memory."""


RECOMPUTE_POLICIES: Mapping[str, RecomputePolicy] = {
    "none": RecomputePolicy(body="all"),
    "block": RecomputePolicy(body="block"),
    "pass": RecomputePolicy(),
    "window": RecomputePolicy(h="window", S="window"),
}
"""The values of `train.recompute`."""


class Edge(NamedTuple):
    """A way for messages between two stages, in the forward or the backward half of a step."""

    src: int
    dst: int
    direction: Direction


class Value(NamedTuple):
    """Something a stage holds for one micro-batch.

    `h` features leaving `op` on stage `stage`, made here or received · `S` fast weights and convolution tails leaving
    `op` (op -1: those the step starts from) · `kv` the attention cache leaving `op` · `dh`, `dS`, `dkv` gradients of these
    · `rdh` the gradient that stage `stage` sent for the features that leave `op` here · `graph` what backward of `op`
    needs · `blocks` inputs of the blocks of `op` · `head` what backward of the head needs.
    """

    kind: str
    op: int
    micro: int
    stage: int


@dataclass(frozen=True, slots=True)
class ScheduleAction:
    """One thing a stage does.

    FWD runs an item without keeping its graph, unless the policy keeps graphs; in the backward half it restores what a
    window's passes read. RECOMPUTE runs it again with its graph, BWD goes back through that graph. LOSS applies the
    head to the features leaving `op`; in the backward half it goes back through the head (and forward first, if the
    policy keeps no graphs). RECV posts a receive and SEND a send; neither waits: the item that reads a value waits for
    its arrival, and what is freed with a SEND is free once it is through. REDUCE sums what two stages share.

    A message is named by the op that made its features, in both directions.
    """

    kind: ActionKind
    op: int
    micro: int
    edge: Edge | None = None
    frees: tuple[Value, ...] = ()
    """Values that nothing reads between this action and the next one that makes them."""


@dataclass(frozen=True)
class StageBlocks:
    """The blocks start..stop-1 of a stage, and which blocks of the whole stack are looped."""

    start: int
    stop: int
    loop: tuple[int, int]

    def part(self, layers: Layers) -> tuple[int, int]:
        """First and one-past-last block that a pass over `layers` runs here; equal where it runs none."""
        first, stop = {"prelude": (0, self.loop[0]), "loop": self.loop, "coda": (self.loop[1], self.stop)}[layers]
        first = max(first, self.start)
        return first, max(first, min(stop, self.stop))


@dataclass(frozen=True)
class Producer:
    """Where an item's input was made: by `op` on `stage` (op -1: before the step)."""

    op: int
    stage: int
    grad: bool
    """Backward of the item adds to the gradient of this input."""


@dataclass(frozen=True)
class StageOp:
    """One op on one stage: the same for every micro-batch."""

    op: int
    blocks: tuple[int, int]
    h: Producer | None
    """Features it reads; None: it embeds the tokens."""
    S: Producer
    kv: Producer | None
    """The attention cache it reads, if it reads one."""
    receives: bool
    """Its features come from another stage, and it is the first here to read them."""
    returns: bool
    """After its backward, the gradient of its features is complete and goes back to the stage that sent them."""
    makes_h: bool
    """Something reads the features that leave it."""
    makes_kv: bool
    """It rewrites the attention cache."""
    sends: tuple[int, ...]
    """Stages that the features leaving it go to."""
    normed: bool
    """What it sends are the features through the final norm, and the gradient that comes back is theirs."""
    loss: bool
    """The head scores the features leaving it, here."""
    boundary: Boundary | None
    """Eviction that the state leaving it undergoes: it is the last of its window here over these blocks."""
    backward: bool
    """It has a backward: gradient of some loss reaches it."""
    dh: bool
    """Items of this stage (or its head) give a gradient to the features leaving it."""
    returned: tuple[int, ...]
    """Stages that send back a gradient for the features leaving it."""
    dS: bool
    """A later item gives a gradient to the fast weights and tails leaving it."""
    dkv: bool
    """A later item gives a gradient to the attention cache leaving it."""


@dataclass(frozen=True)
class StageSchedule:
    """One stage: its blocks, its items by op, and its actions in order, for the two halves of a step."""

    blocks: StageBlocks
    ops: Mapping[int, StageOp]
    forward: tuple[ScheduleAction, ...]
    backward: tuple[ScheduleAction, ...]


@dataclass(frozen=True)
class Schedule:
    """All stages' actions over one group of micro-batches."""

    program: Program
    stages: tuple[StageSchedule, ...]
    group: int
    recompute: RecomputePolicy
    channels: Mapping[Edge, str] = field(default_factory=dict)
    """Which communicator carries an edge. One per directed edge; with fewer, messages block one another."""


def stage_blocks(sleep: Sleep, depth: int, cuts: tuple[int, ...] = ()) -> tuple[StageBlocks, ...]:
    """The stages of a stack of `depth` blocks that is cut before the blocks `cuts`; no cuts: one stage.

    Stages are neighbours in the stack, so the first ones own what runs before the looped range (and the embedding), the
    last ones what runs after it (and the head). Raises ValueError where a stage would own no block.
    """
    bounds = (0, *cuts, depth)
    if any(a >= b for a, b in pairwise(bounds)):
        raise ValueError(f"cuts {list(cuts)} leave a stage of a stack of {depth} blocks without a block")
    loop = loop_range(sleep, depth)
    return tuple(StageBlocks(a, b, loop) for a, b in pairwise(bounds))
