"""The schedule as data: every stage's actions over one group of micro-batches, and the values they read and write.

A program describes one batch. A schedule describes how the stages of a pipeline run that program for a group of
micro-batches, forward and backward. The executor runs it, `check` verifies it, `estimate` and `draw` read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from itertools import pairwise
from typing import Literal, NamedTuple

from sleeptrain.program import Boundary, Layers, Program, Sleep, loop_range

ActionKind = Literal["FWD", "RECOMPUTE", "BWD", "SEND", "RECV", "LOSS", "REDUCE"]
Granularity = Literal["pass", "window"]
Direction = Literal["forward", "backward", "reduce"]
Body = Literal["none", "block", "products", "all"]
"""What is saved inside a stage op: nothing, the input of every block, also the outputs of its matrix products, attention and delta
rule, or the whole autograd graph."""


@dataclass(frozen=True)
class RecomputePolicy:
    """Which activations are saved for backward; all others are recomputed. Received features are always saved."""

    h: Granularity = "pass"
    """Save the features entering every pass, or only those at window starts."""
    S: Granularity = "pass"
    """Save the state entering every pass, or only the state at window starts."""
    body: Body = "none"
    offload: bool = False
    """Saved activations are moved to host memory between forward and backward."""


RECOMPUTE_POLICIES: Mapping[str, RecomputePolicy] = {
    "none": RecomputePolicy(body="all"),
    "selective": RecomputePolicy(body="products"),
    "block": RecomputePolicy(body="block"),
    "pass": RecomputePolicy(),
    "window": RecomputePolicy(h="window", S="window"),
}
"""The values of `train.recompute`."""


class Edge(NamedTuple):
    """A directed P2P connection from stage `src` to stage `dst`, used in one half of a step (or to reduce)."""

    src: int
    dst: int
    direction: Direction


class Value(NamedTuple):
    """The name of a tensor (or group of tensors) that a stage holds for one micro-batch.

    Kinds:

    - `h`: features leaving `op` on stage `stage`, computed on this stage or received
    - `S`: fast weights and convolution tails leaving `op`; `op` is -1 for the initial state of the step
    - `kv`: attention cache leaving `op`; `op` is -1 for the cache with which the step begins
    - `dh`, `dS`, `dkv`: gradients of these
    - `rdh`: gradient received from stage `stage` for the features leaving `op` on this stage
    - `graph`: saved autograd graph of `op`
    - `blocks`: saved inputs of the blocks of `op`, and outputs of their products
    - `head`: saved autograd graph of the loss head
    """

    kind: str
    op: int
    micro: int
    stage: int


@dataclass(frozen=True, slots=True)
class ScheduleAction:
    """One step of a stage's schedule.

    - FWD runs a stage op without saving its graph, unless the policy saves graphs. In the backward half it restores the
      inputs of a window's passes.
    - RECOMPUTE runs a stage op again with its graph.
    - BWD runs backward through that graph.
    - LOSS applies the head to the features leaving `op`. In the backward half it runs the head's backward, and its
      forward first unless the policy saves graphs.
    - RECV posts a receive and SEND posts a send; neither blocks. The stage op that reads a received value waits for its
      arrival. A value freed with a SEND is released once the send has completed.
    - REDUCE sums the gradient of a matrix that two stages share.

    A message carries the index of the op that computed its features, in both directions.
    """

    kind: ActionKind
    op: int
    micro: int
    edge: Edge | None = None
    frees: tuple[Value, ...] = ()
    """Values that no later action reads before they are written again."""


@dataclass(frozen=True)
class StageBlocks:
    """The blocks start..stop-1 of one stage, and the looped range of the whole stack."""

    start: int
    stop: int
    loop: tuple[int, int]

    def part(self, layers: Layers) -> tuple[int, int]:
        """First and one-past-last block that a pass over `layers` runs on this stage; equal if it runs none."""
        first, stop = {"prelude": (0, self.loop[0]), "loop": self.loop, "coda": (self.loop[1], self.stop)}[layers]
        first = max(first, self.start)
        return first, max(first, min(stop, self.stop))


@dataclass(frozen=True)
class Producer:
    """The op and stage that compute an input of a stage op; op -1 is the initial state of the step."""

    op: int
    stage: int
    grad: bool
    """Backward of the reading stage op adds to the gradient of this input."""


@dataclass(frozen=True)
class StageOp:
    """One op of the program on one stage; the same for every micro-batch."""

    op: int
    blocks: tuple[int, int]
    h: Producer | None
    """Producer of the input features; None if the stage op embeds the tokens."""
    S: Producer
    """Producer of the state (fast weights and convolution tails)."""
    kv: Producer | None
    """Producer of the attention cache; None if the op reads no cache."""
    receives: bool
    """Its input features come from another stage, and it is the first op of this stage that reads them."""
    sends_grad: bool
    """Its backward completes the gradient of received features, which is then sent to their producer."""
    makes_h: bool
    """Some stage op or the head reads the features it computes."""
    makes_kv: bool
    """It rewrites the attention cache."""
    sends: tuple[int, ...]
    """Stages that its output features are sent to."""
    normed: bool
    """Its output features are sent through the final norm, and the received gradient is that of the normed features."""
    loss: bool
    """The head scores its output features on this stage."""
    boundary: Boundary | None
    """Eviction applied to its output state; set on the last op of a window over these blocks."""
    backward: bool
    """It has a backward: the gradient of some loss reaches it."""
    dh: bool
    """Backward of other ops (or the head) on this stage produces a gradient of its output features."""
    receives_grad: tuple[int, ...]
    """Stages that send a gradient of its output features."""
    dS: bool
    """Backward of a later op produces a gradient of its output state."""
    dkv: bool
    """Backward of a later op produces a gradient of its output attention cache."""


@dataclass(frozen=True)
class StageSchedule:
    """One stage: its blocks, its stage ops by op index, and its actions in order for both halves of a step."""

    blocks: StageBlocks
    ops: Mapping[int, StageOp]
    forward: tuple[ScheduleAction, ...]
    backward: tuple[ScheduleAction, ...]


@dataclass(frozen=True)
class Schedule:
    """The actions of all stages over one group of micro-batches."""

    program: Program
    stages: tuple[StageSchedule, ...]
    group: int
    """Micro-batches in the group."""
    recompute: RecomputePolicy
    channels: Mapping[Edge, str] = field(default_factory=dict)
    """Name of the communicator of each edge. Edges that share a communicator can deadlock."""

    @cached_property
    def key(self) -> str:
        """Hash of everything that all stages must agree on. Ranks with different keys would deadlock."""
        stages = [(stage.blocks, stage.forward, stage.backward) for stage in self.stages]
        content = (self.program.key, self.group, self.recompute, sorted(self.channels.items()), stages)
        return sha256(repr(content).encode()).hexdigest()[:16]


def stage_blocks(sleep: Sleep, depth: int, cuts: tuple[int, ...] = ()) -> tuple[StageBlocks, ...]:
    """Split a stack of `depth` blocks into stages; a stage starts at block 0 and at every block of `cuts`.

    Stages are contiguous. The first stages own the prelude and the embedding, the last ones the coda and the head.
    Raises ValueError if a stage would own no block.
    """
    bounds = (0, *cuts, depth)
    if any(a >= b for a, b in pairwise(bounds)):
        raise ValueError(f"cuts {list(cuts)} leave a stage of a stack of {depth} blocks without a block")
    loop = loop_range(sleep, depth)
    return tuple(StageBlocks(a, b, loop) for a, b in pairwise(bounds))
