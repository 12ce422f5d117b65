"""The activation store: the values of a schedule by name, from the action that makes each to the one that frees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from torch import Tensor

from sleeptrain.execute.gradients import add_optional
from sleeptrain.execute.offload import Offloader
from sleeptrain.execute.p2p import PendingRecv
from sleeptrain.schedule import ScheduleAction, Value

ActionObserver = Callable[[Literal["begin", "arrived", "end"], ScheduleAction | Value], None]
"""Called when an action begins or ends, and when a received message that an action waited for has arrived."""


class ActivationStore:
    """Values by name: tensors, dicts of leaves, lists of tensors or graphs; on the device, pending or offloaded."""

    def __init__(self, offloader: Offloader) -> None:
        self.offloader = offloader
        self.observer: ActionObserver | None = None
        """Called when a received message has arrived."""
        self.values: dict[Value, Any] = {}

    def get(self, value: Value) -> Any:
        """A value on the device; waits for a pending receive. KeyError for a value that is not stored."""
        stored = self.values[value]
        if isinstance(stored, PendingRecv):
            stored = self.values[value] = stored.tensor()
            if self.observer:
                self.observer("arrived", value)
        elif self.offloader.enabled:
            stored = self.values[value] = self.offloader.get(stored)
        return stored

    def put(self, value: Value, content: Any) -> None:
        """Store a value."""
        self.values[value] = content

    def add(self, value: Value, gradient: Tensor | None) -> None:
        """Add to the gradient of features; None means zero."""
        self.values[value] = add_optional(self.values.get(value), gradient)

    def add_leaves(self, value: Value, gradients: Mapping[str, Tensor]) -> None:
        """Add to the gradients of state leaves; a missing leaf means zero."""
        total = self.values.setdefault(value, {})
        for name, gradient in gradients.items():
            total[name] = total[name] + gradient if name in total else gradient

    def free(self, values: Iterable[Value]) -> None:
        """Drop values."""
        for value in values:
            del self.values[value]

    def discard(self, values: Iterable[Value]) -> None:
        """Drop values, of which some may not have been stored."""
        for value in values:
            self.values.pop(value, None)

    def offload(self, values: Iterable[Value]) -> None:
        """Move values to host memory until they are read."""
        for value in values:
            self.values[value] = self.offloader.put(self.values[value])
