"""Inference session: feeds tokens through one pass, and lets a full window sleep before it is evicted.

Memory is bounded by the window: nothing of an evicted window is stored but the state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sleeptrain.inference.compiled import compiled_functions
from sleeptrain.inference.rows import FILL, join_rows, push_right, put_rows, session_leaves, trim
from sleeptrain.inference.sampling import GREEDY, Sampling
from sleeptrain.inference.token_reader import Room, TokenReader
from sleeptrain.inference.window import NextTokens, evict_window, read_piece
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.state import State
from sleeptrain.model.token import TokenFunctions
from sleeptrain.program import Sleep


class SleepSession:
    """A batch of rows, each with a length of its own. Predicting a token costs one pass, whatever N is.

    A row computes what it computes alone. Its full window is evicted when its next token arrives. Before that the window sleeps
    if the trainer's program would let it: always under `every`, and under `context` unless it holds scored or generated tokens.
    For the windows of a training sequence the session computes the trainer's logits.
    """

    def __init__(
        self, model: LanguageModel, sleep: Sleep, *, batch: int = 1, passes: int | None = None, compiled: bool = False
    ) -> None:
        """`passes` overrides N, which is the largest of `sleep.passes` by default. Raises ValueError for sizes below 1.

        `compiled`: single tokens are read by compiled functions, which differ from the others by rounding. Where they cannot be
        compiled, the log says so in one line, and the others are used.
        """
        model.check_feedback(sleep)
        self.model, self.sleep = model, sleep
        self.passes = passes if passes is not None else sleep.max_passes
        if batch < 1:
            raise ValueError(f"batch = {batch} must be at least 1")
        weight = model.embed.weight
        functions = compiled_functions(weight.device.type) if compiled else TokenFunctions()
        self._tokens = TokenReader(model, sleep, functions)
        self._state = State.zeros(session_leaves(model.config, sleep, weight.dtype), batch, weight.device)
        self._room: Room | None = None

    @property
    def passes(self) -> int:
        """N, which may be changed at any time: the windows that are evicted from now on sleep with it."""
        return self._passes

    @passes.setter
    def passes(self, passes: int) -> None:
        if passes < 1:
            raise ValueError(f"passes = {passes} must be at least 1; the first pass is counted")
        self._passes = passes

    @property
    def fill(self) -> Tensor:
        """The number of tokens in each row's unfinished window, int64 [batch]."""
        return self._state[FILL][:, 0]

    @property
    def lengths(self) -> Tensor:
        """The number of tokens that each row has read, int64 [batch]."""
        return self._state["live.before"][:, 0] + self.fill

    @property
    def logits(self) -> Tensor:
        """The logits of each row's next token [batch, vocab]; zeros before its first token."""
        return self._state["live.logits"]

    def state(self) -> State:
        """The state of the session, the unfinished windows included."""
        return self._state

    def load_state(self, state: State) -> None:
        """Continue from a state of a session with the same model and `sleep` section; the batch is that of the state.

        Raises ValueError, naming a leaf, where the leaves differ.
        """
        self._check(state)
        self._set(state)

    def rows(self, index: Sequence[int]) -> State:
        """The state of some rows, in the order of `index`."""
        return trim(self._state.rows(torch.tensor(index, dtype=torch.int64, device=self.fill.device)), self.sleep)

    def keep(self, index: Sequence[int]) -> None:
        """Remove all rows but those of `index`, whose order the session takes over. None may be left."""
        self._set(self.rows(index))

    def append(self, state: State) -> None:
        """Add the rows of a state after the present ones. Raises ValueError, naming a leaf, where it does not fit."""
        self._check(state)
        self._set(join_rows([self._state, state]))

    @torch.no_grad()
    def feed(
        self, tokens: Tensor, lengths: Tensor | None = None, *, scored: bool = False, real: Tensor | None = None
    ) -> Tensor:
        """Read `tokens` [batch, time] and return the logits of the token after each, [batch, time, vocab].

        lengths   int64 [batch], the number of tokens that each row reads; the rest is ignored, and its logits are 0
        scored    the tokens are targets or generated, so that under `context` their window does not sleep
        real      [batch, time], false at padding, which takes a place in its window, as in the rows of a task

        Raises ValueError for tokens outside the vocabulary, and for wrong shapes.
        """
        if self._read_token(tokens, lengths, scored, real):
            return self.logits[:, None].clone()
        logits: Tensor = self.logits.new_zeros(*tokens.shape, self.logits.shape[-1])
        for rows, columns, piece, features in self._pieces(tokens, lengths, scored, real):
            read = piece.present
            logits[rows[:, None].expand_as(columns)[read], columns[read]] = self.model.logits(features)[read]
        return logits

    def prefill(
        self, tokens: Tensor, lengths: Tensor | None = None, *, scored: bool = False, real: Tensor | None = None
    ) -> Tensor:
        """Read tokens as `feed` does and return the logits after each row's last token, [batch, vocab]. No others are computed."""
        if not self._read_token(tokens, lengths, scored, real):
            for _ in self._pieces(tokens, lengths, scored, real):
                pass
        return self.logits

    def generate(self, count: int, sampling: Sampling = GREEDY, stop: int | None = None) -> Iterator[Tensor]:
        """Generate up to `count` tokens per row, [batch] at a time; ends early when every row has produced `stop`.

        A row that has produced it reads nothing more, and its further tokens are `stop`.
        """
        ended = torch.zeros_like(self.fill, dtype=torch.bool)
        sample = sampling.sampler()
        for _ in range(count):
            token = sample(self.logits)
            if stop is not None:
                token = token.masked_fill(ended, stop)
                ended |= token == stop
            yield token
            if bool(ended.all()):
                return
            self.prefill(token[:, None], (~ended).long(), scored=True)

    @torch.no_grad()
    def _pieces(
        self, tokens: Tensor, lengths: Tensor | None, scored: bool, real: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor, NextTokens, Tensor]]:
        """Read tokens in pieces, each up to the end of its row's window, so that rows reach window ends together from the second on.

        Yields the rows [n] of a piece, its columns in `tokens` [n, time], the piece, and its features [n, time, width].
        """
        lengths = self._check_tokens(tokens, lengths, real)
        done = torch.zeros_like(lengths)
        while len(rows := (done < lengths).nonzero()[:, 0]):
            state = self._state if len(rows) == len(done) else trim(self._state.rows(rows), self.sleep)
            state = self._evict_full(state)
            count = torch.minimum((lengths - done)[rows], self.sleep.window - state[FILL][:, 0])
            columns = done[rows, None] + torch.arange(int(count.max()), device=tokens.device)
            present = columns < (done[rows] + count)[:, None]
            index = columns.clamp_max(tokens.shape[1] - 1)
            valid = present if real is None else present & real[rows].gather(1, index)
            piece = NextTokens(tokens[rows].gather(1, index).masked_fill(~present, 0), present, valid, scored)
            features, state = read_piece(self.model, self.sleep, state, piece)
            if bool((done[rows] + count == lengths[rows]).any()):  # the logits after other pieces are seen by nobody
                last = features[torch.arange(len(rows), device=tokens.device), count - 1]
                state = state.replace({"live.logits": self.model.logits(last[:, None])[:, 0]})
            if not bool(present.all()):
                state = trim(push_right(state, present.shape[1] - count), self.sleep)
            self._set(put_rows(self._state, rows, state))
            done = done.index_add(0, rows, count)
            yield rows, columns, piece, features

    @torch.no_grad()
    def _read_token(self, tokens: Tensor, lengths: Tensor | None, scored: bool, real: Tensor | None) -> bool:
        """Read one token of every row, and whether this was asked for: else nothing is read."""
        rows = len(self.fill)
        if not rows or real is not None or tokens.shape != (rows, 1):
            return False
        if lengths is not None and (lengths.shape != (rows,) or not bool((lengths == 1).all())):
            return False
        least, most = torch.aminmax(tokens)
        if int(least) < 0 or int(most) >= self.model.embed.num_embeddings:
            return False
        room = self._room or Room.of(self._state, self.sleep)
        if not room.tokens:
            self._set(self._evict_full(self._state))
            room = Room.of(self._state, self.sleep)
        _, state = self._tokens.read(self._state, tokens, scored=scored, seen=room.seen)
        self._state, self._room = state, Room(room.tokens - 1, room.seen)
        return True

    def _set(self, state: State) -> None:
        """Continue from a state of which nothing is known."""
        self._state, self._room = state, None
        self._tokens.buffers.clear()

    def _evict_full(self, state: State) -> State:
        """The state after sleep and eviction of those rows' windows that are full."""
        full = (state[FILL][:, 0] == self.sleep.window).nonzero()[:, 0]
        if not len(full):
            return state
        rows = state if len(full) == len(state[FILL]) else trim(state.rows(full), self.sleep)
        evicted = evict_window(self.model, self.sleep, rows, self.passes)
        return trim(put_rows(state, full, evicted), self.sleep)

    def _check(self, state: State) -> None:
        if state.spec != self._state.spec:
            ours, theirs = {f.name for f in self._state.spec}, {f.name for f in state.spec}
            pairs = zip(self._state.spec, state.spec, strict=False)
            wrong = sorted(ours ^ theirs) or [f.name for f, g in pairs if f != g]
            raise ValueError(f"this state belongs to another model or sleep section: leaf {wrong[0]} does not fit")

    def _check_tokens(self, tokens: Tensor, lengths: Tensor | None, real: Tensor | None) -> Tensor:
        """The number of tokens that each row reads. Raises ValueError for what cannot be read."""
        batch, vocab = len(self.fill), self.model.embed.num_embeddings
        if tokens.ndim != 2 or len(tokens) != batch or (real is not None and real.shape != tokens.shape):
            shapes = f"{list(tokens.shape)}{'' if real is None else f' and {list(real.shape)}'}"
            raise ValueError(
                f"tokens and real must be [{batch}, time] for the {batch} rows of the session, not {shapes}"
            )
        if lengths is None:
            lengths = torch.full((batch,), tokens.shape[1], device=tokens.device)
        elif lengths.shape != (batch,) or bool(((lengths < 0) | (lengths > tokens.shape[1])).any()):
            raise ValueError(f"lengths must be {batch} numbers from 0 to {tokens.shape[1]}, not {lengths.tolist()}")
        read = tokens[torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]]
        if read.numel() and not (int(read.min()) >= 0 and int(read.max()) < vocab):
            raise ValueError(f"tokens must be in 0..{vocab - 1}; got {int(read.min())}..{int(read.max())}")
        return lengths
