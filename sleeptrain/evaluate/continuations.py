"""What an exported model that sleeps makes of given texts: log-likelihoods of continuations, and continuations of its own.

Texts of several lengths are read in one batch, window by window: a text leaves the batch before its last window. A text is read once,
whatever the number of continuations that are scored. `model` is a `SleepForCausalLM`, whose `config.sleep` says how it sleeps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

LOGITS = 2**27
"""The largest number of logits that are computed at once."""
Tokens = Sequence[int]


@dataclass(frozen=True)
class ScoredText:
    """A text that is scored: the log-likelihood of its last tokens after the others. Both have at least one token."""

    context: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Likelihood:
    """The score of a continuation."""

    log: float
    """The sum of the log-probabilities of its tokens, in nats."""
    greedy: bool
    """Whether each of its tokens is the most probable one."""


def likelihoods(
    model: Any, asked: Sequence[ScoredText], rows: int, done: Callable[[int], None] = lambda count: None
) -> list[Likelihood]:
    """The scores of continuations, computed in batches of at most `rows`. `done` hears of the number of each batch.

    Tokens of a continuation are targets: under `trigger: context` their window does not sleep.
    """
    window, found = model.config.sleep["window"], dict[int, Likelihood]()
    places: dict[tuple[int, ...], list[int]] = {}
    for i, one in enumerate(asked):
        places.setdefault(one.context, []).append(i)
    contexts = list(places)
    for texts, cache in _read_windows(model, contexts, rows):
        row_of = {i: row for row, text in enumerate(texts) for i in places[contexts[text]]}
        order = sorted(row_of, key=lambda i: (_tail(asked[i], window) + len(asked[i].tokens), i))
        for full in (False, True):
            for batch in _batches([i for i in order if (_tail(asked[i], window) == window) == full], rows):
                chosen = _rows(cache, [row_of[i] for i in batch])
                scores = _score(model, chosen, [asked[i] for i in batch], full)
                found |= dict(zip(batch, scores, strict=True))
                done(len(batch))
    return [found[i] for i in range(len(asked))]


@torch.no_grad()
def continued(
    model: Any, texts: Sequence[Tokens], rows: int, done: Callable[[int], None] = lambda count: None,
    criteria: Callable[[int], Any] = lambda length: None, **options: Any,
) -> list[list[int]]:  # fmt: skip
    """The tokens that `model.generate(**options)` adds to each text, up to the first that ends a text. No text is empty.

    `criteria` gives the stopping criteria of texts with so many tokens.
    """
    found, end = dict[int, list[int]](), model.generation_config.eos_token_id
    for members, cache in _read_windows(model, texts, rows):
        same: dict[int, list[int]] = {}
        for row, i in enumerate(members):
            same.setdefault(len(texts[i]), []).append(row)
        for length, index in same.items():
            chosen = [members[row] for row in index]
            inputs = torch.tensor([list(texts[i]) for i in chosen], device=model.device)
            out = model.generate(
                inputs, past_key_values=_rows(cache, index), stopping_criteria=criteria(length), **options
            )
            found |= {i: _until(new, end) for i, new in zip(chosen, out[:, length:].tolist(), strict=True)}
            done(len(index))
    return [found[i] for i in range(len(texts))]


def _until(tokens: list[int], end: int | None) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens


def _tail(one: ScoredText, window: int) -> int:
    """The number of tokens, 1 to L, of the last window of its context."""
    return (len(one.context) - 1) % window + 1


def _batches(items: Sequence[int], size: int) -> Iterator[list[int]]:
    return (list(items[at : at + size]) for at in range(0, len(items), size))


def _read_windows(model: Any, texts: Sequence[Tokens], rows: int) -> Iterator[tuple[list[int], Any]]:
    """Read all windows of the texts but the last of each, which has 1 to L tokens.

    Yields the numbers of texts that have equally many, and the cache after them; None before the first window.
    """
    window = model.config.sleep["window"]
    count = [(len(text) - 1) // window for text in texts]
    order = sorted(range(len(texts)), key=lambda i: -count[i])
    for batch in _batches(order, rows):
        cache, read = None, 0
        while batch:
            going = [i for i in batch if count[i] > read]
            if len(going) < len(batch):
                yield batch[len(going) :], _rows(cache, range(len(going), len(batch)))
                cache = _rows(cache, range(len(going))) if going else None
            if going:
                piece = [list(texts[i][read * window : (read + 1) * window]) for i in going]
                inputs = torch.tensor(piece, device=model.device)
                cache = model(inputs, past_key_values=cache, logits_to_keep=1).past_key_values
            batch, read = going, read + 1


def _rows(cache: Any, index: Sequence[int]) -> Any:
    """A copy of some rows of a cache."""
    if cache is None:
        return None
    chosen = copy.deepcopy(cache)
    chosen.reorder_cache(torch.tensor(list(index), device=cache.window["tokens"].device))
    return chosen


def _score(model: Any, cache: Any, chosen: Sequence[ScoredText], full: bool) -> list[Likelihood]:
    """Read the last windows of contexts and their continuations. `full`: these windows are full, otherwise none is.

    Rows are padded on the right, where nothing is read that a token before depends on.
    """
    window = model.config.sleep["window"]
    tails = [one.context[-_tail(one, window) :] for one in chosen]
    inputs = [[*tail, *one.tokens[:-1]] for tail, one in zip(tails, chosen, strict=True)]
    width, first = max(map(len, inputs)), min(map(len, tails)) - 1
    tokens = torch.zeros(len(chosen), width, dtype=torch.int64)
    targets = torch.full_like(tokens, -1)
    for i, one in enumerate(chosen):
        tokens[i, : len(inputs[i])] = torch.tensor(inputs[i])
        targets[i, len(tails[i]) - 1 : len(inputs[i])] = torch.tensor(one.tokens)
    tokens, targets = tokens.to(model.device), targets.to(model.device)
    total, greedy = torch.zeros(len(chosen), dtype=torch.float64), torch.ones(len(chosen), dtype=torch.bool)
    step = max(1, LOGITS // (len(chosen) * model.config.vocab_size))
    for start, stop in pairwise(sorted({0, width, *range(window, width, window), *range(first, width, step)})):
        piece, wanted = tokens[:, start:stop], targets[:, start:stop]
        # The window of a context that fills it is read before any target; every later one has targets.
        out = model(
            piece, past_key_values=cache, generated=not (full and start < window), logits_to_keep=0 if start >= first else 1
        )  # fmt: skip
        cache = out.past_key_values
        if start >= first:
            log, best = _of_targets(out.logits, wanted)
            total, greedy = total + log, greedy & best
    return [Likelihood(float(log), bool(best)) for log, best in zip(total, greedy, strict=True)]


def _of_targets(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """For rows of logits [rows, time, vocab]: the log-likelihood of the targets [rows, time], -1 for none, and whether all are best."""
    scored, index = targets >= 0, targets.clamp_min(0)[..., None]
    log = logits.float().log_softmax(-1).gather(-1, index)[..., 0].double().masked_fill(~scored, 0.0).sum(1)
    return log.cpu(), ((logits.argmax(-1) == targets) | ~scored).all(1).cpu()
