"""The text that a session's row writes after its prompt: sampled tokens, their text, stop strings, and why it ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from sleeptrain.inference.sampling import GREEDY, Sampling
from sleeptrain.inference.text import Codec
from sleeptrain.inference.text_stream import StopStrings


class TextSession(Protocol):
    """A batch of texts that an engine reads, as `SleepSession` does."""

    @property
    def lengths(self) -> Tensor:
        """The number of tokens that each text has, int64 [batch]."""

    @property
    def logits(self) -> Tensor:
        """The logits of each text's next token [batch, vocab]."""

    def prefill(self, tokens: Tensor, lengths: Tensor | None = None, *, scored: bool = False) -> Tensor:
        """Read `tokens` [batch, time], of each text the first `lengths`; `scored`: they were generated."""


class Continuation:
    """One row's text: at most `count` tokens after those of `prompt`, ended by the end of its document or by a stop string.

    It draws with a random generator of its own, so that it does not depend on other rows.
    """

    def __init__(
        self, codec: Codec, prompt: Sequence[int], count: int, sampling: Sampling = GREEDY, stops: Sequence[str] = ()
    ) -> None:
        """Raises ValueError for an empty stop string."""
        self._text, self._stops = codec.stream(prompt), StopStrings(stops)
        self._sample, self._end_token, self._count = sampling.sampler(), codec.stop, count
        self.tokens: list[int] = []
        """The tokens that were drawn, without the one that ends a document."""
        self.finish: Literal["stop", "length"] | None = None
        """Why the text ended: its document or a stop string, or the number of tokens. None while it goes on."""

    def draw(self, logits: Tensor) -> int:
        """The next token, from its logits [vocab]."""
        return int(self._sample(logits[None])[0])

    def push(self, token: int) -> str:
        """The text that a drawn token adds. Sets `finish` where it is the last one."""
        if token == self._end_token:
            return self._ended("stop")
        self.tokens.append(token)
        text = self._stops.push(self._text.push(token))
        if self._stops.found:
            return text + self._ended("stop")
        return text + self._ended("length") if len(self.tokens) >= self._count else text

    def _ended(self, why: Literal["stop", "length"]) -> str:
        self.finish = why
        rest = self._stops.push(self._text.end()) + self._stops.end()
        if self._stops.found:
            self.finish = "stop"
        return rest


def write_token(session: TextSession, rows: Sequence[Continuation]) -> list[str]:
    """Draw a token for every row of a session that is not finished, and read it; returns the text that each row gains.

    The session reads the last token, too, but not one that ends a document: a later prompt continues the text.
    """
    texts, tokens = [""] * len(rows), torch.zeros(len(rows), 1, dtype=torch.int64)
    lengths = torch.zeros(len(rows), dtype=torch.int64)
    for i, row in enumerate(rows):
        if row.finish is None:
            tokens[i], before = row.draw(session.logits[i]), len(row.tokens)
            texts[i] = row.push(int(tokens[i]))
            lengths[i] = len(row.tokens) - before
    device = session.logits.device
    session.prefill(tokens.to(device), lengths=lengths.to(device), scored=True)
    return texts


def padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts of any lengths as the tokens [rows, time] and the lengths [rows] that a session reads."""
    lengths = torch.tensor([len(prompt) for prompt in prompts], dtype=torch.int64)
    tokens = torch.zeros(len(prompts), int(lengths.max()) if len(prompts) else 0, dtype=torch.int64)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt, dtype=torch.int64)
    return tokens.to(device), lengths.to(device)
