"""Parameter initialisation; a value depends on the seed and the parameter's name, not on order, layout or device."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from sleeptrain.model.language import LanguageModel

SHORTEST_HALF_LIFE = 16.0
"""Half-life in tokens of a layer's fastest head at initialisation."""


def initialise(model: LanguageModel, seed: int, horizon: int) -> None:
    """Fill all parameters in place; a model on the meta device must be moved with `to_empty` first.

    Matrices N(0, init_std); norms neutral; the convolution uniform in +-1/sqrt(taps); dt_bias the inverse softplus of dt
    log-uniform in 1e-3..1e-1, as in flash-linear-attention; A such that the half-lives of a layer's heads are spaced
    logarithmically from 16 tokens to `horizon`, the tokens that all passes write over the longest context. Every pass
    applies the decay of its tokens: after N passes with the usual A in 0..16 the first window would have decayed to
    nothing before the answer.
    """
    fill(model, lambda name, shape: initial(name, shape, seed, model.config.init_std, horizon))


def fill(model: nn.Module, value: Callable[[str, torch.Size], Tensor]) -> None:
    """Copy `value(name, shape)` into every parameter, several at a time: torch draws random numbers on one core."""

    def copy(named: tuple[str, nn.Parameter]) -> None:
        with torch.no_grad():  # a setting of the thread
            named[1].copy_(value(named[0], named[1].shape))

    with ThreadPoolExecutor(drawing_threads()) as pool:
        list(pool.map(copy, model.named_parameters()))


def drawing_threads() -> int:
    """Cores that this process may use, divided by the processes that a launcher started on this machine; at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(16, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def initial(name: str, shape: torch.Size, seed: int, std: float, horizon: int) -> Tensor:
    """The float32 initial value of one parameter of the whole model."""
    kind = name.rsplit(".", 1)[-1]
    if kind == "A_log":
        dt_bias = initial(name.removesuffix(kind) + "dt_bias", shape, seed, std, horizon)
        return (math.log(2) / (half_lives(shape.numel(), horizon) * torch.nn.functional.softplus(dt_bias))).log()
    generator = torch.Generator().manual_seed(
        int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") >> 1
    )
    if kind == "dt_bias":
        low, high = math.log(1e-3), math.log(1e-1)
        dt = torch.exp(low + (high - low) * torch.rand(shape, generator=generator))
        return dt + torch.log(-torch.expm1(-dt))
    if kind.startswith("conv_"):
        return (2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(shape[-1])
    if len(shape) == 1:
        return torch.ones(shape) if kind == "norm" else torch.zeros(shape)
    return std * torch.randn(shape, generator=generator)


def half_lives(heads: int, horizon: int) -> Tensor:
    """Half-lives [heads] in tokens, spaced logarithmically from 16 to the horizon; a single head gets the horizon."""
    longest = max(float(horizon), SHORTEST_HALF_LIFE)
    if heads == 1:
        return torch.tensor([longest])
    return torch.logspace(math.log10(SHORTEST_HALF_LIFE), math.log10(longest), heads)
