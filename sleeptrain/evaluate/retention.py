"""Retention: the share of the first window's writes to the fast weights that decay leaves when the answer is read."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from sleeptrain.model.deltanet import DeltaNet
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.sleep import RecomputeWrappers
from sleeptrain.model.token_mask import NO_MASK


class Retention:
    """A context manager that records the decays of every Gated DeltaNet head while a program runs.

    The retention of a head is the product of its decays over all tokens between the end of the first pass over the first
    window and the start of the last window. It is the share of what that pass wrote that decay alone leaves for the answer.
    N passes apply the decays N times, so that results at different N are comparable only beside their retention. With two
    windows and one pass there are no tokens in between, and retention is 1.
    """

    def __init__(self, model: LanguageModel, windows: int) -> None:
        """Record the decays of `model` in programs of `windows` windows."""
        self._mixers = {i: block.mixer for i, block in enumerate(model.layers) if isinstance(block.mixer, DeltaNet)}
        self._last_window, self._window = windows - 1, -1
        self._mask = NO_MASK
        self._is_sample = torch.zeros(0, dtype=torch.bool)
        self._log_decay: dict[int, Tensor] = {}
        self._hooks: list[Any] = []
        self._sums: dict[int, Tensor] = {}
        self._rows = 0

    def __enter__(self) -> Retention:
        for layer, mixer in self._mixers.items():
            self._hooks.append(mixer.a.register_forward_hook(partial(self._record_decay, layer, mixer)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def recompute(self, is_sample: Tensor) -> RecomputeWrappers:
        """Start a batch whose rows are counted where `is_sample` [rows]. Returns the wrappers for `sleep.run`, which count windows."""
        self._finish_batch()
        self._window, self._is_sample = -1, is_sample
        return RecomputeWrappers(window=self._run_window)

    def by_head(self) -> dict[int, list[float]]:
        """For each layer the mean over samples of each value head; empty for a program of one window, and without samples."""
        self._finish_batch()
        if not self._rows:
            return {}
        return {layer: (total / self._rows).tolist() for layer, total in self._sums.items()}

    def _run_window(self, function: Callable[..., Any], *tensors: Any) -> Any:
        """Run a window, after counting it and taking its mask of valid tokens."""
        self._window += 1
        self._mask = tensors[2]
        return function(*tensors)

    def _record_decay(self, layer: int, mixer: DeltaNet, module: nn.Module, inputs: Any, a: Tensor) -> None:
        """Forward hook of a decay projection: add the log decays of one pass over one window."""
        if self._window >= self._last_window:
            return
        g = mixer.decay(a.detach())
        if layer not in self._log_decay:  # the first pass over the first window writes what is to be retained
            self._log_decay[layer] = g.new_zeros(g.shape[0], g.shape[2], dtype=torch.float64)
            return
        if self._mask.valid is not None:
            g = g * self._mask.valid[..., None]
        self._log_decay[layer] = self._log_decay[layer] + g.double().sum(1)

    def _finish_batch(self) -> None:
        """Add the retention of the samples of a batch to the sums."""
        for layer, log_decay in self._log_decay.items():
            retention = log_decay.exp().cpu()[self._is_sample].sum(0)
            self._sums[layer] = self._sums[layer] + retention if layer in self._sums else retention
        if self._log_decay:
            self._rows += int(self._is_sample.sum())
        self._log_decay = {}


def best_head(by_head: dict[int, list[float]]) -> float | None:
    """The largest retention of all heads of all layers; None without any."""
    values = [value for heads in by_head.values() for value in heads]
    return max(values) if values else None
