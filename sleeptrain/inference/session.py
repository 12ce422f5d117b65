"""Inference session: feeds tokens through one pass, and lets a full window sleep before it is evicted.

Memory is bounded by the window: nothing of an evicted window is stored but the state.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sleeptrain.inference.sampling import GREEDY, Sampling
from sleeptrain.model.language import IGNORED, LanguageModel
from sleeptrain.model.sleep import LoopFeatures, RunContext, run_window
from sleeptrain.model.state import State, leaves
from sleeptrain.model.token_mask import TokenMask
from sleeptrain.program import Boundary, Layers, Pass, Sleep, Window, blocks_of, compile, kept_tokens


class SleepSession:
    """A batch of rows that advance together. Predicting a token costs one pass, whatever N is.

    A full window is evicted when the next token arrives. Before that it sleeps if the trainer's program would: always under
    `every`, and under `context` unless it holds scored or generated tokens. For the windows of a training sequence the
    session computes the trainer's logits.
    """

    def __init__(self, model: LanguageModel, sleep: Sleep, *, batch: int = 1, passes: int | None = None) -> None:
        """`passes` overrides N, which is the largest of `sleep.passes` by default. Raises ValueError for sizes below 1."""
        if batch < 1 or (passes is not None and passes < 1):
            raise ValueError(f"batch = {batch} and passes = {passes} must be at least 1; the first pass is counted")
        model.check_feedback(sleep)
        self.model, self.sleep = model, sleep
        self.passes = passes if passes is not None else sleep.max_passes
        weight = model.embed.weight
        spec = leaves(model.config, sleep, weight.dtype, live=True)
        self._state = State.zeros(spec, batch, weight.device)

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return len(self.model.layers)

    @property
    def fill(self) -> int:
        """The number of tokens in the unfinished window."""
        return self._state["live.tokens"].shape[1]

    def state(self) -> State:
        """The state of the session, the unfinished window included."""
        return self._state

    def load_state(self, state: State) -> None:
        """Continue from a state of a session with the same model and `sleep` section.

        Raises ValueError, naming a leaf, where the leaves differ.
        """
        if state.spec != self._state.spec:
            ours, theirs = {f.name for f in self._state.spec}, {f.name for f in state.spec}
            pairs = zip(self._state.spec, state.spec, strict=True)
            wrong = sorted(ours ^ theirs) or [f.name for f, g in pairs if f != g]
            raise ValueError(f"this state belongs to another model or sleep section: leaf {wrong[0]} does not fit")
        self._state = state

    @torch.no_grad()
    def feed(self, tokens: Tensor, *, scored: bool = False, real: Tensor | None = None) -> Tensor:
        """Read `tokens` [batch, time] and return the logits of the token after each, [batch, time, vocab].

        `scored`: the tokens are targets or generated, so that under `context` their window does not sleep. `real`
        [batch, time] is false at padding. Raises ValueError for tokens outside the vocabulary.
        """
        vocab = self.model.embed.num_embeddings
        if tokens.numel() and not (int(tokens.min()) >= 0 and int(tokens.max()) < vocab):
            raise ValueError(f"tokens must be in 0..{vocab - 1}; got {int(tokens.min())}..{int(tokens.max())}")
        out, start = [], 0
        while start < tokens.shape[1]:
            if self.fill == self.sleep.window:
                self._evict()
            part = slice(start, start + self.sleep.window - self.fill)
            out.append(self._read(tokens[:, part], scored, None if real is None else real[:, part]))
            start = part.stop
        return torch.cat(out, 1) if out else self._state["live.logits"][:, None][:, :0]

    def generate(self, count: int, sampling: Sampling = GREEDY, stop: int | None = None) -> Iterator[Tensor]:
        """Generate up to `count` tokens per row, [batch] at a time; ends early when every row has produced `stop`."""
        ended = torch.zeros(
            self._state["live.logits"].shape[0], dtype=torch.bool, device=self._state["live.logits"].device
        )
        sample = sampling.sampler()
        for _ in range(count):
            token = sample(self._state["live.logits"])
            yield token
            ended |= token == stop if stop is not None else False
            if bool(ended.all()):
                return
            self.feed(token[:, None], scored=True)

    def _read(self, tokens: Tensor, scored: bool, real: Tensor | None) -> Tensor:
        """Pass 1 over the next tokens of the unfinished window."""
        state, fill = self._state, self.fill
        if fill == 0:
            state = self._save_coda(state.cross("pass"))
        before = int(state["live.before"][0, 0]) if self.sleep.evict.mode == "sliding" else 0
        real = torch.ones_like(tokens, dtype=torch.bool) if real is None else real
        mask = TokenMask(None if bool(real.all()) else real)
        h = self.model.embed(tokens)
        loop_entry = loop_exit = h
        for layers in ("prelude", "loop", "coda"):
            op = self._first_pass(layers, tokens.shape[1], before + fill)
            blocks = blocks_of(layers, self.sleep, self.depth)
            h, state = self.model.layers(h, state, op, blocks, self.sleep.window, mask)
            loop_entry, loop_exit = (h if layers == "prelude" else loop_entry), (h if layers == "loop" else loop_exit)
        logits = self.model.logits(h)
        new = {
            "tokens": tokens, "real": real, "scored": torch.full_like(real, scored), "above": loop_entry, "exit": loop_exit,
        }  # fmt: skip
        live = {f"live.{name}": torch.cat([state[f"live.{name}"], t], 1) for name, t in new.items()}
        self._state = state.replace(live | {"live.logits": logits[:, -1]})
        return logits

    def _first_pass(self, layers: Layers, time: int, position0: int) -> Pass:
        return Pass(
            window=0, start=0, stop=time, position0=position0, index=1, of=1, layers=layers, reads="raw", loss=False,
            grad=False, detach=False, kv_read=True, kv_write=True,
        )  # fmt: skip

    def _evict(self) -> None:
        """Run passes 2..N over the full window if it sleeps, then evict it."""
        state, length = self._state, self.fill
        slept = self._sleep(state) if self._will_sleep(state) else state
        evicted = slept.evict(Boundary(0, kept_tokens(self.sleep), detach=False))
        self._state = evicted.replace({"live.before": state["live.before"] + length})

    def _will_sleep(self, state: State) -> bool:
        triggered = self.sleep.loop.trigger == "every" or not bool(state["live.scored"].any())
        return triggered and self.passes > 1

    def _sleep(self, state: State) -> State:
        """The state after passes 2..N over the window, which run by the trainer's program."""
        tokens, real = state["live.tokens"], state["live.real"]
        before = int(state["live.before"][0, 0])
        # Under `every` the last window of a program does not sleep, so a window of one token follows this one.
        layout = [
            Window(0, tokens.shape[1], targets=self.sleep.loop.trigger == "every"),
            Window(tokens.shape[1], tokens.shape[1] + 1, True),
        ]
        passes, _ = next(compile(self.sleep, layout, self.depth, self.passes).by_window())
        later = [op for op in passes if op.index > 1]
        if self.sleep.evict.mode == "sliding":
            later = [dataclasses.replace(op, position0=before, kv_read=True) for op in later]
        state = self._restore_coda(state.forget_newest(tokens.shape[1], blocks_of("loop", self.sleep, self.depth)))
        context = RunContext(self.model, self.sleep, self.sleep.window, state.spec)
        unscored, mask = torch.full_like(tokens, IGNORED), TokenMask(None if bool(real.all()) else real)
        loop = LoopFeatures(state["live.above"], state["live.exit"])
        _, _, _, *after = run_window(context, later, None, tokens, unscored, mask, *state.flat(), loop=loop)
        return context.state(after)

    def _save_coda(self, state: State) -> State:
        """Copy the coda's state at the start of a window: under `context` the coda runs again after the last pass."""
        return self._copy_coda(state, lambda name: (f"live.{name}", name))

    def _restore_coda(self, state: State) -> State:
        return self._copy_coda(state, lambda name: (name, f"live.{name}"))

    def _copy_coda(self, state: State, names: Callable[[str], tuple[str, str]]) -> State:
        coda = [f.name.removeprefix("live.") for f in state.spec if f.name.startswith("live.layers.")]
        return state.replace({to: state[source] for to, source in map(names, coda)})
