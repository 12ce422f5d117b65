"""A session in llama.cpp: windows of a GGUF model sleep as those of `SleepSession`, where stock llama.cpp can do it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from sleeptrain.errors import UserError
from sleeptrain.inference.llama_context import LlamaContext, LlamaModel
from sleeptrain.inference.llama_state import write_state
from sleeptrain.inference.rows import FILL
from sleeptrain.inference.session import SleepSession
from sleeptrain.model.config import Model
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.state import State
from sleeptrain.program import Sleep, loop_range


class LlamaRow:
    """One text, with its unfinished window."""

    def __init__(self, context: LlamaContext, sleep: Sleep, passes: int) -> None:
        self._context, self._sleep, self._passes = context, sleep, passes
        self._tokens = torch.empty(0, dtype=torch.int64)
        self._features = torch.empty(0, context.model.width)
        self._scored = False
        self.before = 0
        """Tokens of the windows before."""
        self.logits = torch.zeros(context.model.vocab)
        """Of the next token, [vocab]."""

    @property
    def fill(self) -> int:
        """Tokens of the unfinished window."""
        return len(self._tokens)

    def read(self, tokens: Tensor, *, scored: bool) -> None:
        """Read tokens [time]. A full window sleeps and is evicted when the next token arrives."""
        while len(tokens):
            if self.fill == self._sleep.window:
                self._evict()
            piece, tokens = tokens.split([n := min(len(tokens), self._sleep.window - self.fill), len(tokens) - n])
            self.logits, features = self._context.read(piece, self.fill)
            self._tokens, self._features = torch.cat([self._tokens, piece]), torch.cat([self._features, features])
            self._scored |= scored

    def load(self, model: LanguageModel, state: State) -> None:
        """Continue from the only row of a state of the session's model."""
        fill = int(state[FILL])
        leaves = {f.name: state[f.name][0, -fill:] if f.timed else state[f.name][0] for f in state.spec}
        if not fill:
            return
        self._context.clear()
        self._context.read(leaves["live.tokens"], 0)  # after it the state has the right size
        write_state(data := self._context.state(), model.config, leaves)
        self._context.set_state(data)
        self._tokens, self._scored = leaves["live.tokens"], bool(leaves["live.scored"].any())
        self._features, self.logits = model.norm(leaves["live.exit"]), leaves["live.logits"]
        self.before = int(leaves["live.before"])

    def _evict(self) -> None:
        """Passes 2..N over the full window if it sleeps; then it leaves the attention cache."""
        if self._sleep.loop.trigger == "every" or not self._scored:
            for _ in range(self._passes - 1):
                self._context.forget_keys()
                normed = self._sleep.loop.feedback == "normed"
                _, self._features = self._context.read(self._features if normed else self._tokens, 0)
        self._context.forget_keys()
        self.before += self.fill
        self._tokens, self._features, self._scored = self._tokens[:0], self._features[:0], False


class LlamaSession:
    """A batch of texts that llama.cpp reads one after another; what `SleepSession` computes, for a GGUF file of its model."""

    def __init__(self, path: Path, model: Model, sleep: Sleep, *, batch: int = 1, passes: int | None = None) -> None:
        """`passes` overrides N. Raises UserError for a sleep that llama.cpp cannot do, and for a file of another model."""
        self.passes = sleep.max_passes if passes is None else passes
        if told := list(obstacles(sleep, len(model.pattern), self.passes)):
            raise UserError([f"{field} cannot sleep in llama.cpp: {why}; leave --engine out" for field, why in told])
        self.loaded = loaded = LlamaModel(path)
        for name, found, ours in (
            ("blocks", loaded.layers, len(model.pattern)), ("features", loaded.width, model.width), ("tokens", loaded.vocab, model.vocab),
        ):  # fmt: skip
            if found != ours:
                raise UserError(
                    f"--gguf {path} has {found:,} {name}, and the run has {ours:,}; export the run to GGUF again"
                )
        features = sleep.loop.feedback == "normed" and self.passes > 1
        contexts = [LlamaContext(loaded, sleep.window, features=features) for _ in range(batch)]
        self._rows = [LlamaRow(context, sleep, self.passes) for context in contexts]

    @torch.no_grad()
    def load_state(self, session: SleepSession) -> None:
        """Continue what a session of the same model has read, row by row: fast weights, tails, caches, unfinished windows."""
        for i, row in enumerate(self._rows):
            row.load(session.model, session.rows([i]))

    @property
    def lengths(self) -> Tensor:
        """The number of tokens that each text has, int64 [batch]."""
        return torch.tensor([row.before + row.fill for row in self._rows])

    @property
    def logits(self) -> Tensor:
        """The logits of each text's next token [batch, vocab]; zeros before its first token."""
        return torch.stack([row.logits for row in self._rows])

    def prefill(self, tokens: Tensor, lengths: Tensor | None = None, *, scored: bool = False) -> Tensor:
        """Read `tokens` [batch, time], of each text the first `lengths` [batch]; the logits after each one's last [batch, vocab].

        `scored`: the tokens were generated, so that under `trigger: context` their window does not sleep.
        """
        counts = [tokens.shape[1]] * len(tokens) if lengths is None else lengths.tolist()
        for row, piece, count in zip(self._rows, tokens, counts, strict=True):
            row.read(piece[:count], scored=scored)
        return self.logits


def obstacles(sleep: Sleep, depth: int, passes: int) -> Iterator[tuple[str, str]]:
    """What of a sleep stock llama.cpp cannot do: the field of the recipe with its value, and why."""
    if sleep.evict.mode != "hard":
        yield f"sleep.evict.mode: {sleep.evict.mode}", "its attention cache is cleared as a whole"
    if not sleep.evict.conv_carry:
        yield "sleep.evict.conv_carry: false", "its convolution tails stay with the fast weights"
    if passes > 1 and sleep.loop.feedback not in ("normed", "embeddings"):
        yield f"sleep.loop.feedback: {sleep.loop.feedback}", "it gives features after the final norm only"
    if passes > 1 and loop_range(sleep, depth) != (0, depth):
        yield f"sleep.loop.layers: {list(loop_range(sleep, depth))}", "it runs all blocks"
