"""A session: feed tokens, get predictions; full windows sleep before they are evicted; memory stays bounded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sleeptrain.inference.sampling import GREEDY, Sampling
from sleeptrain.model.language import IGNORED, LanguageModel
from sleeptrain.model.sleep import KEEP_ALL, run_window
from sleeptrain.model.state import State, leaves
from sleeptrain.program import Boundary, Layers, Pass, Sleep, Window, blocks_of, compile, kept_tokens


class SleepSession:
    """A batch of rows read and written in step. Predicting a token costs one pass, whatever N is.

    Eviction is lazy: a full window is evicted when the next token arrives. It sleeps first if the program says so: under
    `every` always, under `context` unless it holds scored or generated tokens. Fed the windows of a training sequence, it
    gives the trainer's logits.
    """

    def __init__(self, model: LanguageModel, sleep: Sleep, *, batch: int = 1, passes: int | None = None) -> None:
        """`passes` overrides N."""
        self.model, self.sleep = model, sleep
        self.passes = passes if passes is not None else sleep.max_passes
        weight = model.embed.weight
        spec = leaves(model.config, sleep, weight.dtype, live=True)
        self._state = State.zeros(spec, batch, weight.device)

    @property
    def depth(self) -> int:
        """Blocks of the stack."""
        return len(self.model.layers)

    @property
    def fill(self) -> int:
        """Tokens in the unfinished window."""
        return self._state["live.tokens"].shape[1]

    def state(self) -> State:
        """All that the session remembers, its unfinished window included."""
        return self._state

    def load_state(self, state: State) -> None:
        """Go on from a state of the same model and `sleep` section. Raises ValueError where the leaves differ."""
        if state.spec != self._state.spec:
            ours, theirs = {f.name for f in self._state.spec}, {f.name for f in state.spec}
            odd = sorted(ours ^ theirs) or [f.name for f, g in zip(self._state.spec, state.spec, strict=True) if f != g]
            raise ValueError(f"this state belongs to another model or sleep section: leaf {odd[0]} does not fit")
        self._state = state

    @torch.no_grad()
    def feed(self, tokens: Tensor, *, scored: bool = False, real: Tensor | None = None) -> Tensor:
        """Read `tokens` [batch, time]; logits of the token after each, [batch, time, vocab].

        `scored` says that these tokens are predicted or generated, so that under `context` their window will not sleep;
        `real` [batch, time] is false at padding. Raises ValueError for tokens outside the vocabulary.
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
        """Write up to `count` tokens after what was fed, [batch] at a time; ends early when all rows have said `stop`."""
        ended = torch.zeros(
            self._state["live.logits"].shape[0], dtype=torch.bool, device=self._state["live.logits"].device
        )
        pick = sampling.picker()
        for _ in range(count):
            token = pick(self._state["live.logits"])
            yield token
            ended |= token == stop if stop is not None else False
            if bool(ended.all()):
                return
            self.feed(token[:, None], scored=True)

    def _read(self, tokens: Tensor, scored: bool, real: Tensor | None) -> Tensor:
        """Pass 1 over the next tokens of the window in the making."""
        state, fill = self._state, self.fill
        if fill == 0:
            state = self._remember_coda(state.cross("pass"))
        before = int(state["live.before"][0, 0]) if self.sleep.evict.mode == "sliding" else 0
        real = torch.ones_like(tokens, dtype=torch.bool) if real is None else real
        valid = None if bool(real.all()) else real
        h = self.model.embed(tokens)
        entered = left = h
        for layers in ("prelude", "loop", "coda"):
            op = self._step(layers, tokens.shape[1], before + fill)
            blocks = blocks_of(layers, self.sleep, self.depth)
            h, state = self.model.layers(h, state, op, blocks, self.sleep.window, valid)
            entered, left = (h if layers == "prelude" else entered), (h if layers == "loop" else left)
        logits = self.model.logits(h)
        new = {"tokens": tokens, "real": real, "scored": torch.full_like(real, scored), "above": entered, "exit": left}
        grown = {f"live.{name}": torch.cat([state[f"live.{name}"], t], 1) for name, t in new.items()}
        self._state = state.replace(grown | {"live.logits": logits[:, -1]})
        return logits

    def _step(self, layers: Layers, time: int, position0: int) -> Pass:
        return Pass(
            window=0, start=0, stop=time, position0=position0, index=1, of=1, layers=layers, reads="raw", loss=False,
            grad=False, detach=False, kv_read=True, kv_write=True,
        )  # fmt: skip

    def _evict(self) -> None:
        """Let the full window sleep if the program says so, then clear what does not cross its end."""
        state, length = self._state, self.fill
        slept = self._slept(state) if self._sleeps(state) else state
        end = slept.evict(Boundary(0, kept_tokens(self.sleep), detach=False))
        self._state = end.replace({"live.before": state["live.before"] + length})

    def _sleeps(self, state: State) -> bool:
        asleep = self.sleep.loop.trigger == "every" or not bool(state["live.scored"].any())
        return asleep and self.passes > 1

    def _slept(self, state: State) -> State:
        """Passes 2..N over the window, by the program that the trainer runs."""
        tokens, real = state["live.tokens"], state["live.real"]
        before = int(state["live.before"][0, 0])
        # A window that follows makes the program treat this one as not the last, which under `every` would not sleep.
        layout = [
            Window(0, tokens.shape[1], targets=self.sleep.loop.trigger == "every"),
            Window(tokens.shape[1], tokens.shape[1] + 1, True),
        ]
        passes, _ = next(compile(self.sleep, layout, self.depth, self.passes).by_window())
        late = [op for op in passes if op.index > 1]
        if self.sleep.evict.mode == "sliding":
            late = [dataclasses.replace(op, position0=before, kv_read=True) for op in late]
        state = self._restore_coda(state.forget_newest(tokens.shape[1], blocks_of("loop", self.sleep, self.depth)))
        nothing = torch.full_like(tokens, IGNORED)
        _, _, _, *flat = run_window(
            self.model, late, None, self.sleep, self.sleep.window, state, KEEP_ALL, False,
            state["live.above"], state["live.exit"], tokens, nothing, None if bool(real.all()) else real, *state.flat(),
        )  # fmt: skip
        return state.unflat(flat)

    def _remember_coda(self, state: State) -> State:
        """Under `context` a coda runs after the last pass only, so its state at the window's start is kept."""
        return self._copy_coda(state, lambda name: (f"live.{name}", name))

    def _restore_coda(self, state: State) -> State:
        return self._copy_coda(state, lambda name: (name, f"live.{name}"))

    def _copy_coda(self, state: State, names: Callable[[str], tuple[str, str]]) -> State:
        kept = [f.name.removeprefix("live.") for f in state.spec if f.name.startswith("live.layers.")]
        return state.replace({to: state[source] for to, source in map(names, kept)})
