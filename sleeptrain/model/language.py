"""The language model: embedding, stack, final norm and head."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sleeptrain.model.config import Model
from sleeptrain.model.embedding import IGNORED, Embedding, Head
from sleeptrain.model.init import initialise
from sleeptrain.model.micro_batch import MicroBatch, check_starts, starts_by_window
from sleeptrain.model.norm import RMSNorm
from sleeptrain.model.scores import HeadScores
from sleeptrain.model.stack import Stack
from sleeptrain.model.state import State, leaves
from sleeptrain.program import Sleep, Window, compile

DEFAULT_HORIZON = 4096
"""`deltanet.horizon` of a model that is built without data."""


class GatedFeedback(nn.Module):
    """The input of passes 2..N under `feedback: gated`: `e + weight * h / rms(h)`, with the embeddings e and the features h.

    The weight [width] is 0 at the start, so that training begins with the embeddings alone.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, e: Tensor, h: Tensor) -> Tensor:
        """Embeddings and features [batch, time, width] -> features, computed in float32 or float64, in h's dtype."""
        wide = torch.promote_types(h.dtype, torch.float32)
        return e + F.rms_norm(h.to(wide), h.shape[-1:], self.weight.to(wide), self.eps).to(h.dtype)


class LanguageModel(nn.Module):
    """Embedding, blocks, final norm and head, with the initial values of a seed.

    gated   whether it has the weights of `sleep.loop.feedback: gated`
    seed    of the initial values, which depend on nothing else (`init.py`); None leaves parameters uninitialised, to be loaded

    The half-lives of the heads reach `config.deltanet.horizon`, or 4,096 tokens if it is null; a recipe takes it from its
    data. On the meta device there are no values. Raises ValueError where `config.vocab` is null.
    """

    def __init__(self, config: Model, *, gated: bool = False, seed: int | None = 0) -> None:
        super().__init__()
        if config.vocab is None:
            raise ValueError("model.vocab is null; take it from the data's manifest before building the model")
        self.config = config
        self.embed = Embedding(config.vocab, config.width)
        self.layers = Stack(config)
        self.norm = RMSNorm(config.width, config.eps)
        self.feedback = GatedFeedback(config.width, config.eps) if gated else None
        self.head = None if config.tie else Head(config.width, config.vocab)
        self.local_blocks = (0, len(self.layers))
        """First and one-past-last block of this pipeline stage."""
        self.token_shards = 1
        """Sequence parallelism: the number of processes that share the tokens of features between blocks."""
        self.z_loss = 0.0
        """Weight of the z-loss in the gradient of `nll`; see there."""
        if seed is not None and not self.embed.weight.is_meta:
            initialise(self, seed, config.deltanet.horizon or DEFAULT_HORIZON)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        *,
        sleep: Sleep,
        windows: Sequence[Window] | None = None,
        valid: Tensor | None = None,
        starts: Tensor | None = None,
    ) -> Tensor:
        """Read rows of tokens with sleep: logits, or with `targets` the mean loss in nats per target, a scalar.

        tokens, targets   [rows, length] int64; targets are -100 where there is none
        windows           default: windows of `sleep.window` tokens. Under `trigger: every` all are predicted; under `context` those
                          with targets, or without `targets` the last one, and the others are context that sleeps
        valid             [rows, length] bool, false at padding; None where there is none
        starts            [rows, length] bool, true at the first token of every document of a row that holds several; tokens before
                          the first one are a document, too. None where every row is one document

        Logits are float32 [rows, tokens of the predicted windows, vocab]. Plain autograd: every activation is saved for
        backward. The trainer recomputes them instead, by `train.recompute`. Raises ValueError where shapes, windows or targets
        do not fit, and where no window would sleep although `sleep.passes` is above 1.
        """
        from sleeptrain.model.sleep import run  # which imports this module

        self.check_feedback(sleep)
        if tokens.ndim != 2 or not tokens.shape[1] or (targets is not None and targets.shape != tokens.shape):
            shapes = f"{list(tokens.shape)}{'' if targets is None else f' and {list(targets.shape)}'}"
            raise ValueError(f"tokens and targets must be [rows, length] with a length of at least 1, not {shapes}")
        windows = cut_windows(sleep, tokens.shape[1], targets) if windows is None else windows
        check_windows(sleep, windows, tokens.shape[1], targets)
        scored = torch.full_like(tokens, IGNORED) if targets is None else targets
        if starts is not None:
            check_starts(starts, tokens, valid)
        state, begins = self.zero_state(sleep, tokens.shape[0]), starts_by_window(starts, windows)
        batch = MicroBatch(tokens, scored, state, valid, starts=begins)
        program = compile(sleep, windows, len(self.layers))
        output = run(self, batch, program, sleep, predict="logits" if targets is None else None)
        if output.predicted is not None:
            return output.predicted
        return output.nll.sum() / (scored != IGNORED).sum().clamp_min(1)

    def zero_state(self, sleep: Sleep, batch: int) -> State:
        """The state of the local blocks before the first token, on the model's device and in its dtype."""
        weight, (first, stop) = next(self.parameters()), self.local_blocks
        spec = [leaf for leaf in leaves(self.config, sleep, weight.dtype) if first <= leaf.layer < stop]
        return State.zeros(spec, batch, weight.device)

    def check_feedback(self, sleep: Sleep) -> None:
        """Raise ValueError where `sleep.loop.feedback` needs weights that the model was built without."""
        if sleep.gated and self.feedback is None:
            raise ValueError(
                'feedback "gated" has weights of its own; build the model as LanguageModel(config, gated=True)'
            )

    def keep_stage(self, first: int, stop: int) -> None:
        """Reduce the model to one pipeline stage, in place.

        Keeps blocks first..stop-1 under their names, the embedding on the first stage, and the final norm and the head on
        the last one. The embedding stays on the last stage too where it is the head.
        """
        depth = len(self.layers)
        for i in [*range(first), *range(stop, depth)]:
            self.layers[i] = nn.Identity()
        self.local_blocks = (first, stop)
        if first > 0 and not (self.config.tie and stop == depth):
            del self.embed
        if first > 0:
            self.feedback = None
        if stop < depth:
            del self.norm, self.head

    def partial_grads(self) -> list[nn.Parameter]:
        """The parameters whose gradients on this process are partial sums, which communication completes after backward.

        Here: a tied embedding that the first and the last pipeline stage hold.
        """
        depth, (first, stop) = len(self.layers), self.local_blocks
        if not self.config.tie or (first == 0) == (stop == depth):
            return []
        return list(self.embed.parameters())

    def complete_grads(self, grad_of: Callable[[Tensor], Tensor]) -> None:
        """Complete in place the partial gradients that are not the pipeline's task; `grad_of` returns that of a parameter."""

    def logits(self, h: Tensor) -> Tensor:
        """Features after the last block [batch, time, width] -> logits [batch, time, vocab] in float32 or float64."""
        x = self.norm(h)
        x = self.embed(x, as_head=True) if self.head is None else self.head(x)
        return x.to(torch.promote_types(x.dtype, torch.float32))

    def nll(self, h: Tensor, targets: Tensor, known: Tensor | None = None) -> Tensor:
        """Features after the last block [batch, time, width] -> negative log likelihood in nats of the targets [batch, time].

        0 where the target is -100. The operator computes large logits in tiles, so that they never exist all at once.
        `known`: the losses of an earlier call with the same features; they are returned and only the gradient is computed.

        The gradient is that of nll + z_loss * log(Z)^2 of every target, where Z is the denominator of the softmax; the second term, the
        z-loss (arXiv 2204.02311), keeps logits from drifting and is not in the result.
        """
        x = self.norm(h)
        if self.head is None:
            return self.embed(x, targets, known, as_head=True, z_loss=self.z_loss)
        return self.head(x, targets, known, z_loss=self.z_loss)

    @torch.no_grad()
    def predict(self, h: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The losses of `nll` and the likeliest token at every position, int64 [batch, time]. No gradient.

        The logits are computed in tiles of tokens, so that they never exist all at once.
        """
        scored = targets != IGNORED
        scores = self.scores(self.norm(h), targets)
        return scores.nll.view(targets.shape).where(scored, 0), scores.likeliest.view(targets.shape)

    def scores(self, x: Tensor, targets: Tensor) -> HeadScores:
        """The statistics of the logits of normed features [batch, time, width], over the whole vocabulary."""
        x, targets = x.flatten(0, -2), targets.flatten()
        scores: HeadScores = (
            self.embed(x, targets, as_head=True, scores=True)
            if self.head is None
            else self.head(x, targets, scores=True)
        )
        return scores

    def relative_change(self, h: Tensor, before: Tensor, valid: Tensor | None) -> Tensor:
        """The relative change of each row's features of a window by a pass, ||h - before|| / ||before||, float32 [rows].

        The norms are over the tokens that are not padding, by `valid` [rows, time]; NaN for a row of padding only.
        """
        squares = self.row_squares(h - before, before, valid)
        return (squares[0] / squares[1]).sqrt()

    def row_squares(self, change: Tensor, before: Tensor, valid: Tensor | None) -> Tensor:
        """The squared norms of each row of two features of a window [rows, time, width], without padding, float32 [2, rows]."""
        token_squares = torch.stack([x.float().square().sum(-1) for x in (change, before)])
        return (token_squares if valid is None else token_squares.masked_fill(~valid, 0)).sum(-1)


def cut_windows(sleep: Sleep, length: int, targets: Tensor | None) -> list[Window]:
    """Windows of `sleep.window` tokens. They are predicted as `LanguageModel.forward` describes."""
    spans = [(start, min(start + sleep.window, length)) for start in range(0, length, sleep.window)]
    if sleep.loop.trigger == "every":
        return [Window(start, stop, True) for start, stop in spans]
    if targets is None:
        return [Window(start, stop, stop == length) for start, stop in spans]
    return [Window(start, stop, bool((targets[:, start:stop] != IGNORED).any())) for start, stop in spans]


def check_windows(sleep: Sleep, windows: Sequence[Window], length: int, targets: Tensor | None) -> None:
    """Raise ValueError unless the windows divide `length` tokens, hold all targets, and some sleep if there are passes for it."""
    edges = [0, *(window.stop for window in windows)]
    if [window.start for window in windows] != edges[:-1] or edges[-1] != length:
        raise ValueError(
            f"windows must follow one another from token 0 to {length}, not {[(w.start, w.stop) for w in windows]}"
        )
    for window in windows:
        if (
            targets is not None
            and not window.targets
            and bool((targets[:, window.start : window.stop] != IGNORED).any())
        ):
            raise ValueError(
                f"the window of tokens {window.start} to {window.stop - 1} has targets, but is not predicted"
            )
    if sleep.max_passes > 1 and sleep.loop.trigger == "context" and all(window.targets for window in windows):
        raise ValueError(
            f"every window has targets, so that none would sleep and passes = {sleep.max_passes} would change nothing; use "
            'Sleep(..., loop=Loop(trigger="every")) for text'
        )


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log likelihood of each target [batch, time] in nats, 0 where the target is -100."""
    flat = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return flat.view(targets.shape)
