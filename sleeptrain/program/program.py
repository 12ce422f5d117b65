"""The program: the passes of one training step over its windows, and the eviction between windows, as a value.

`compile` defines window and pass semantics in one place. Trainer, pipeline, planner and inference session all interpret
the same `Program`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from sleeptrain.program.config import Sleep, check_sleep

Layers = Literal["prelude", "loop", "coda"]
Reads = Literal["tokens", "raw", "normed", "gated", "above"]


@dataclass(frozen=True)
class Window:
    """Tokens start..stop-1 of a sequence; `targets` tells whether any of them has a target."""

    start: int
    stop: int
    targets: bool


@dataclass(frozen=True)
class Pass:
    """One pass of a range of blocks over one window (tokens start..stop-1)."""

    window: int
    start: int
    stop: int
    position0: int
    """Rotary position of the window's first token."""
    index: int
    """Number of this pass over the window, from 1."""
    of: int
    """Total number of passes over this window."""
    layers: Layers
    reads: Reads
    """Input features. `tokens`: embeddings of the window. `raw`: features leaving the looped range (also the input of a
    coda). `normed`: these features through the final norm. `gated`: embeddings of the window plus a learned multiple of
    these features. `above`: features leaving the prelude."""
    loss: bool
    """The head computes the loss of the window's targets from the output of this pass."""
    grad: bool
    """This pass has a backward."""
    detach: bool
    """Input features and state are detached."""
    kv_read: bool
    """Attention reads the cache that earlier windows left."""
    kv_write: bool
    """The attention cache that this pass leaves is kept for later windows."""

    @property
    def last_document(self) -> bool:
        """This pass reads the last document of its window only: the earlier ones have ended, and nobody reads their fast weights again."""
        return self.index > 1 and self.layers == "loop"


@dataclass(frozen=True)
class Boundary:
    """Eviction after a window: the newest `keep_kv` tokens stay in the attention cache; `detach` detaches the state."""

    window: int
    keep_kv: int
    detach: bool


Op = Pass | Boundary


@dataclass(frozen=True)
class Program:
    """All passes and boundaries of one training step over one layout of windows, in order."""

    ops: tuple[Op, ...]
    span: int
    """Largest number of keys per query (L)."""
    clip_state: float | None = None
    """Largest norm of the gradient of S at a boundary (see `Gradient.clip_state`)."""

    @cached_property
    def key(self) -> str:
        """Hash of the ops. Ranks with different keys would deadlock or train different models."""
        return hashlib.sha256(repr((self.span, self.clip_state, self.ops)).encode()).hexdigest()[:16]

    def by_window(self) -> Iterator[tuple[list[Pass], Boundary | None]]:
        """The passes of every window with the boundary after it (None after the last window, unless its state is carried)."""
        passes: list[Pass] = []
        for op in self.ops:
            if isinstance(op, Pass):
                passes.append(op)
            else:
                yield passes, op
                passes = []
        if passes:
            yield passes, None

    @property
    def windows(self) -> int:
        """Number of windows."""
        return 1 + max(op.window for op in self.ops)

    @property
    def carried(self) -> bool:
        """Whether the state after the last window goes on in the next step."""
        return isinstance(self.ops[-1], Boundary)

    @cached_property
    def passes(self) -> int:
        """Largest number of passes over a window."""
        return max(op.of for op in self.ops if isinstance(op, Pass))

    @property
    def token_passes(self) -> int:
        """Tokens times passes of the looped range: the cost of a step in units of one pass over one token."""
        return sum(op.stop - op.start for op in self.ops if isinstance(op, Pass) and op.layers == "loop")


def compile(
    sleep: Sleep, windows: Sequence[Window], depth: int, passes: int | None = None, *, carried: bool = False
) -> Program:
    """Compiles the program of one step.

    `depth` is the number of blocks of the stack. `passes` overrides N: the value of a ramp or draw at this step, or of a
    sweep at test time. With trigger `context` the program sleeps on windows without targets and predicts the others in
    one pass (arXiv 2605.26099, Algorithm 1). With trigger `every` it predicts each window in pass 1 and then sleeps on
    it, except on the last window.

    `carried`: the state begins with that of the step before and is carried to the next one. Then the last window sleeps too, and
    is evicted; its later passes have no gradient, since no loss of the step reads what they write. Under sliding eviction the
    rotary positions of the carried keys are 0..L-2.

    Raises ValueError for wrong values of `sleep`, an empty layout, and for empty windows or windows longer than `sleep.window`.
    """
    check_sleep(sleep, depth)
    if not windows:
        raise ValueError("a program needs at least one window")
    for w in windows:
        if not 0 < w.stop - w.start <= sleep.window:
            raise ValueError(f"window {w.start}..{w.stop} has {w.stop - w.start} tokens; sleep.window = {sleep.window}")
    n = passes if passes is not None else sleep.max_passes
    ops: list[Op] = []
    every = sleep.gradient.windows
    for i, window in enumerate(windows):
        last = i == len(windows) - 1
        evicted = not last or carried
        ops += _window_passes(sleep, i, window, _window_pass_count(sleep, window, n, evicted), depth, last, carried)
        if evicted:
            ops.append(Boundary(i, kept_tokens(sleep), detach=last or (every != "all" and (i + 1) % every == 0)))
    return Program(tuple(ops), sleep.window, sleep.gradient.clip_state)


def kept_tokens(sleep: Sleep) -> int:
    """Number of tokens whose keys and values stay in the attention cache after a window."""
    return sleep.window - 1 if sleep.evict.mode == "sliding" else 0


def loop_range(sleep: Sleep, depth: int) -> tuple[int, int]:
    """First and one-past-last block of the looped range in a stack of `depth` blocks."""
    return (0, depth) if sleep.loop.layers == "all" else (sleep.loop.layers[0], sleep.loop.layers[1])


def blocks_of(layers: Layers, sleep: Sleep, depth: int) -> tuple[int, int]:
    """First and one-past-last block that a pass over `layers` runs."""
    first, stop = loop_range(sleep, depth)
    return {"prelude": (0, first), "loop": (first, stop), "coda": (stop, depth)}[layers]


def pairs_seen(program: Program, op: Pass, attention_window: int | None = None) -> float:
    """Number of (query, key) pairs that attention computes in one op, per row.

    Attention is causal over the window and the cache, with at most `program.span` keys per query (or
    `attention_window`, if that is less).
    """
    span, tokens = min(program.span, attention_window or program.span), op.stop - op.start
    cached = min(span - 1, op.position0) if op.kv_read else 0
    if cached + tokens <= span:
        return tokens * cached + tokens * (tokens + 1) / 2
    growing = max(0, span - cached)
    return (tokens - growing) * span + sum(range(cached + 1, cached + growing + 1))


def _window_pass_count(sleep: Sleep, window: Window, n: int, evicted: bool) -> int:
    """Number of passes over a window: n if it sleeps, else 1."""
    sleeps = not window.targets if sleep.loop.trigger == "context" else evicted
    return n if sleeps else 1


def _window_passes(
    sleep: Sleep, index: int, window: Window, n: int, depth: int, last: bool, carried: bool
) -> Iterator[Pass]:
    """Prelude once, looped range n times, coda once: after the last pass with `context`, in pass 1 with `every`."""
    first, stop = loop_range(sleep, depth)
    has_prelude, has_coda = first > 0, stop < depth
    sliding = sleep.evict.mode == "sliding"
    k = n if sleep.gradient.passes == "all" else min(n, sleep.gradient.passes)
    if last and carried:
        k = 0
    before = kept_tokens(sleep) if carried else 0
    coda_at = n if sleep.loop.trigger == "context" else 1

    def make(layers: Layers, i: int, reads: Reads, loss: bool, final: bool) -> Pass:
        own_loss = window.targets and i == 1
        return Pass(
            window=index, start=window.start, stop=window.stop, position0=window.start + before if sliding else 0,
            index=i, of=n, layers=layers, reads=reads, loss=loss,
            grad=i > n - k or own_loss, detach=layers == "loop" and i > 1 and i == n - k + 1,
            kv_read=sliding and (index > 0 or carried), kv_write=sliding and final and (not last or carried),
        )  # fmt: skip

    if has_prelude:
        yield make("prelude", 1, "tokens", False, True)
    entry: Reads = "above" if has_prelude else "tokens"
    for i in range(1, n + 1):
        reads: Reads = entry if i == 1 or sleep.loop.feedback == "embeddings" else sleep.loop.feedback
        scored = window.targets and i == 1 and not has_coda
        yield make("loop", i, reads, scored, i == n)
        if has_coda and i == coda_at:
            yield make("coda", i, "raw", window.targets, True)
