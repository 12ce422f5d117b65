"""The unfinished window of a session's rows: pass 1 over the next tokens, and sleep and eviction of full windows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sleeptrain.inference.rows import FILL, put_rows, trim
from sleeptrain.model.language import IGNORED, LanguageModel
from sleeptrain.model.sleep import LoopFeatures, RecomputeWrappers, RunContext, run_window
from sleeptrain.model.stack import Block, CallWrapper
from sleeptrain.model.state import State
from sleeptrain.model.token_mask import TokenMask
from sleeptrain.program import Boundary, Layers, Pass, Sleep, Window, blocks_of, compile, kept_tokens


@dataclasses.dataclass(frozen=True)
class NextTokens:
    """The next tokens of unfinished windows, [rows, time], at the left end of each row."""

    tokens: Tensor
    """int64."""
    present: Tensor
    """bool, false after the last token of a row."""
    valid: Tensor
    """bool, false there, too, and at padding that takes a place in the window."""
    scored: bool
    """Whether the tokens are targets or generated."""


def read_piece(model: LanguageModel, sleep: Sleep, state: State, piece: NextTokens) -> tuple[Tensor, State]:
    """Pass 1 over a piece, which fits into the windows: the features after the last block [rows, time, width], and the state.

    Rows that are shorter than the piece have padding after their newest token in the returned state (`push_right` removes it).
    """
    sliding = sleep.evict.mode == "sliding"
    position0 = state[FILL] + state["live.before"] if sliding else state[FILL]
    mask = TokenMask(None if bool(piece.valid.all()) else piece.valid)
    h = model.embed(piece.tokens)
    loop_entry = loop_exit = h
    for layers in ("prelude", "loop", "coda"):
        blocks = blocks_of(layers, sleep, len(model.layers))
        op = _first_pass(layers, piece.tokens.shape[1], kv_read=_has_cache(state, blocks))
        h, state = model.layers(h, state, op, blocks, sleep.window, mask, _at(position0))
        loop_entry, loop_exit = (h if layers == "prelude" else loop_entry), (h if layers == "loop" else loop_exit)
    new = {
        "tokens": piece.tokens, "real": piece.valid, "scored": piece.present & piece.scored, "above": loop_entry, "exit": loop_exit,
    }  # fmt: skip
    live = {f"live.{name}": torch.cat([state[f"live.{name}"], t], 1) for name, t in new.items()}
    return h, state.replace(live | {FILL: state[FILL] + piece.present.sum(1, keepdim=True)})


def evict_window(model: LanguageModel, sleep: Sleep, state: State, passes: int) -> State:
    """Run passes 2..`passes` over the windows that sleep, then evict all. Every row of `state` has a full window."""
    sleeps = torch.ones_like(state[FILL][:, 0], dtype=torch.bool)
    if sleep.loop.trigger == "context":
        sleeps = ~state["live.scored"].any(1)
    rows = sleeps.nonzero()[:, 0]
    slept = state
    if passes > 1 and len(rows):
        asleep = state if len(rows) == len(sleeps) else trim(state.rows(rows), sleep)
        slept = put_rows(state, rows, _later_passes(model, sleep, asleep, passes))
    evicted = slept.evict(Boundary(0, kept_tokens(sleep), detach=False))
    evicted = evicted.replace({"live.before": state["live.before"] + sleep.window})
    # Under `context` the coda runs again after the last pass, from its state at the start of the window.
    return _copy_coda(evicted.cross("pass"), lambda name: (f"live.{name}", name))


def _later_passes(model: LanguageModel, sleep: Sleep, state: State, passes: int) -> State:
    """The state after passes 2..N over full windows, which run by the trainer's program."""
    tokens, real = state["live.tokens"], state["live.real"]
    # Under `every` the last window of a program does not sleep, so a window of one token follows this one.
    layout = [
        Window(0, sleep.window, targets=sleep.loop.trigger == "every"),
        Window(sleep.window, sleep.window + 1, True),
    ]
    depth = len(model.layers)
    program, _ = next(compile(sleep, layout, depth, passes).by_window())
    state = _copy_coda(state, lambda name: (name, f"live.{name}"))
    state = state.forget_newest(sleep.window, blocks_of("loop", sleep, depth))
    later = [op for op in program if op.index > 1]
    later = [dataclasses.replace(op, kv_read=_has_cache(state, blocks_of(op.layers, sleep, depth))) for op in later]
    wrappers = RecomputeWrappers()
    if sleep.evict.mode == "sliding":
        wrappers = RecomputeWrappers(block=_at(state["live.before"]))
    context = RunContext(model, sleep, sleep.window, state.spec, wrappers)
    unscored, mask = torch.full_like(tokens, IGNORED), TokenMask(None if bool(real.all()) else real)
    loop = LoopFeatures(state["live.above"], state["live.exit"])
    _, _, _, *after = run_window(context, later, None, tokens, unscored, mask, *state.flat(), loop=loop)
    return context.state(after)


def _first_pass(layers: Layers, time: int, kv_read: bool) -> Pass:
    return Pass(
        window=0, start=0, stop=time, position0=0, index=1, of=1, layers=layers, reads="raw", loss=False, grad=False,
        detach=False, kv_read=kv_read, kv_write=True,
    )  # fmt: skip


def _at(position0: Tensor) -> CallWrapper:
    """Calls blocks with the rotary position of each row's first token, int64 [rows, 1]."""

    def call(block: Block, *args: Any) -> Any:
        return block(*args, position0)

    return call


def _has_cache(state: State, blocks: tuple[int, int]) -> bool:
    """Whether a cache of blocks[0]..blocks[1]-1 holds anything. Attention without one needs no mask."""
    caches = [leaf for leaf in state.spec if leaf.kind == "kv" and blocks[0] <= leaf.layer < blocks[1]]
    return any(state[leaf.name].shape[1] > 0 for leaf in caches)


def _copy_coda(state: State, names: Callable[[str], tuple[str, str]]) -> State:
    """Copy every leaf of the coda that the state holds twice, from the second of its two `names` to the first."""
    coda = [f.name.removeprefix("live.") for f in state.spec if f.name.startswith("live.layers.")]
    return state.replace({to: state[source] for to, source in map(names, coda)})
