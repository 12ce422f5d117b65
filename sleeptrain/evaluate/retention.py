"""How much of the first window is left in the fast weights when the answer is read."""

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


class Retention:
    """A context that watches the decays while a program runs.

    Retention of a head is the product of its decays over everything written between the end of the first pass over the
    first window and the start of the last window: the share of that pass's writes that decay alone leaves for the answer.
    N passes forget N times, so every comparison over N should show it. With two windows and one pass nothing comes in
    between, and it is 1.
    """

    def __init__(self, model: LanguageModel, windows: int) -> None:
        self._mixers = {i: b.mixer for i, b in enumerate(model.layers) if isinstance(b.mixer, DeltaNet)}
        self._last, self._window = windows - 1, -1
        self._valid: Tensor | None = None
        self._logs: dict[int, Tensor] = {}
        self._handles: list[Any] = []
        self._sums: dict[int, Tensor] = {}
        self._rows = 0

    def __enter__(self) -> Retention:
        for layer, mixer in self._mixers.items():
            self._handles.append(mixer.a.register_forward_hook(partial(self._saw, layer, mixer)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def recompute(self) -> RecomputeWrappers:
        """A new batch begins; give this to `sleep.run`, so that windows are counted."""
        self._close()
        self._window = -1
        return RecomputeWrappers(window=self._around)

    def by_head(self) -> dict[int, list[float]]:
        """Mean over rows, by layer, of each value head. Empty where there is only one window."""
        self._close()
        return {layer: (total / self._rows).tolist() for layer, total in self._sums.items()}

    def _around(self, work: Callable[..., Any], *tensors: Any) -> Any:
        self._window += 1
        self._valid = tensors[2]
        return work(*tensors)

    def _saw(self, layer: int, mixer: DeltaNet, module: nn.Module, inputs: Any, a: Tensor) -> None:
        if self._window >= self._last:
            return
        g = mixer.decay(a.detach())
        if layer not in self._logs:  # the first pass over the first window: what is to be retained is being written
            self._logs[layer] = g.new_zeros(g.shape[0], g.shape[2], dtype=torch.float64)
            return
        if self._valid is not None:
            g = g * self._valid[..., None]
        self._logs[layer] = self._logs[layer] + g.double().sum(1)

    def _close(self) -> None:
        for layer, logs in self._logs.items():
            survival = logs.exp().sum(0)
            self._sums[layer] = self._sums[layer] + survival if layer in self._sums else survival
        if self._logs:
            self._rows += next(iter(self._logs.values())).shape[0]
        self._logs = {}


def best(by_head: dict[int, list[float]]) -> float | None:
    """The best head of any layer; None where nothing was measured."""
    values = [value for heads in by_head.values() for value in heads]
    return max(values) if values else None
