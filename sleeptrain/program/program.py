"""The order of work as a value: which passes run over which windows, and what happens between windows.

`compile` writes window and pass semantics down once; the trainer, the pipeline, the planner and the inference session
all interpret the same `Program`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from sleeptrain.program.config import Sleep

Layers = Literal["prelude", "loop", "coda"]
Reads = Literal["tokens", "raw", "normed", "above"]


@dataclass(frozen=True)
class Window:
    """Tokens start..stop-1 of a sequence; `targets`: whether anything in it is scored."""

    start: int
    stop: int
    targets: bool


@dataclass(frozen=True)
class Pass:
    """One pass of a range of blocks over one window."""

    window: int
    start: int
    stop: int
    position0: int
    """Rotary position of the window's first token."""
    index: int
    """1-based number of this pass over the window."""
    of: int
    """All passes over this window."""
    layers: Layers
    reads: Reads
    """`tokens`: embed them; `raw`: features at the exit of the looped range (a coda reads them too);
    `normed`: those through the final norm; `above`: what the prelude handed down."""
    loss: bool
    """The head reads this pass's output and the window's targets are scored."""
    grad: bool
    """The graph of this pass is kept."""
    detach: bool
    """Features and state are cut from the graph on entry."""
    kv_read: bool
    kv_write: bool


@dataclass(frozen=True)
class Boundary:
    """Eviction after a window: the newest `keep_kv` tokens stay in the attention cache."""

    window: int
    keep_kv: int
    detach: bool


Op = Pass | Boundary


@dataclass(frozen=True)
class Program:
    """All passes and boundaries of one training step over one sequence layout, in order."""

    ops: tuple[Op, ...]
    span: int
    """How many keys a query may see at most (L)."""

    @cached_property
    def key(self) -> str:
        """A hash of the operations. Ranks that hold different keys would deadlock or learn different things."""
        return hashlib.sha256(repr((self.span, self.ops)).encode()).hexdigest()[:16]

    def by_window(self) -> Iterator[tuple[list[Pass], Boundary | None]]:
        """Each window's passes with the boundary that follows it (none after the last)."""
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
    def token_passes(self) -> int:
        """Tokens times passes of the looped range: what a step costs, in units of one pass over one token."""
        return sum(op.stop - op.start for op in self.ops if isinstance(op, Pass) and op.layers == "loop")


def compile(sleep: Sleep, windows: Sequence[Window], depth: int, passes: int | None = None) -> Program:
    """The program of one step.

    `depth` is the number of blocks of the stack; `passes` overrides N (a ramp's or a draw's value of this step, a sweep
    at test time). A `context` program sleeps on windows without targets and predicts the others in one pass
    (arXiv 2605.26099, Algorithm 1); an `every` program predicts each window in pass 1 and then sleeps on it, except
    on the last window of the sequence.

    Raises ValueError for an empty layout and for windows longer than `sleep.window`.
    """
    if not windows:
        raise ValueError("a program needs at least one window")
    for w in windows:
        if not 0 < w.stop - w.start <= sleep.window:
            raise ValueError(f"window {w.start}..{w.stop} has {w.stop - w.start} tokens; sleep.window = {sleep.window}")
    n = passes if passes is not None else sleep.max_passes
    ops: list[Op] = []
    for i, window in enumerate(windows):
        last = i == len(windows) - 1
        ops += _passes_over(sleep, i, window, _passes_of(sleep, window, n, last), depth, last)
        if not last:
            horizon = sleep.gradient.windows
            ops.append(Boundary(i, kept_tokens(sleep), detach=horizon != "all" and (i + 1) % horizon == 0))
    return Program(tuple(ops), sleep.window)


def kept_tokens(sleep: Sleep) -> int:
    """How many tokens' keys and values stay in the attention cache when a window is evicted."""
    return sleep.window - 1 if sleep.evict.mode == "sliding" else 0


def loop_range(sleep: Sleep, depth: int) -> tuple[int, int]:
    """First and one-past-last block of the looped range of a stack of `depth` blocks."""
    return (0, depth) if sleep.loop.layers == "all" else (sleep.loop.layers[0], sleep.loop.layers[1])


def blocks_of(layers: Layers, sleep: Sleep, depth: int) -> tuple[int, int]:
    """First and one-past-last block that a pass over `layers` runs."""
    first, stop = loop_range(sleep, depth)
    return {"prelude": (0, first), "loop": (first, stop), "coda": (stop, depth)}[layers]


def pairs_seen(program: Program, op: Pass, reach: int | None = None) -> float:
    """How many pairs of a token and a key attention computes in one op and row: causal, over the window and what is left
    in the cache, at most `program.span` keys a token (`reach`, where that is less)."""
    span, tokens = min(program.span, reach or program.span), op.stop - op.start
    cached = min(span - 1, op.start) if op.kv_read else 0
    if cached + tokens <= span:
        return tokens * cached + tokens * (tokens + 1) / 2
    growing = max(0, span - cached)
    return (tokens - growing) * span + sum(range(cached + 1, cached + growing + 1))


def _passes_of(sleep: Sleep, window: Window, n: int, last: bool) -> int:
    """How many passes this window gets."""
    sleeps = not window.targets if sleep.loop.trigger == "context" else not last
    return n if sleeps else 1


def _passes_over(sleep: Sleep, index: int, window: Window, n: int, depth: int, last: bool) -> Iterator[Pass]:
    """Prelude, the looped range n times, coda: after the last pass under `context`, in pass 1 under `every`."""
    first, stop = loop_range(sleep, depth)
    has_prelude, has_coda = first > 0, stop < depth
    sliding = sleep.evict.mode == "sliding"
    k = n if sleep.gradient.passes == "all" else min(n, sleep.gradient.passes)
    coda_at = n if sleep.loop.trigger == "context" else 1

    def make(layers: Layers, i: int, reads: Reads, loss: bool, writes: bool) -> Pass:
        own_loss = window.targets and i == 1
        return Pass(
            window=index, start=window.start, stop=window.stop, position0=window.start if sliding else 0,
            index=i, of=n, layers=layers, reads=reads, loss=loss,
            grad=i > n - k or own_loss, detach=layers == "loop" and i > 1 and i == n - k + 1,
            kv_read=sliding and index > 0, kv_write=sliding and writes and not last,
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
