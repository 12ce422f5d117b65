"""What a stage holds: the values of a schedule by name, from the action that makes each to the one that frees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from torch import Tensor

from sleeptrain.execute.gradients import add_optional
from sleeptrain.execute.offload import Offloader
from sleeptrain.execute.p2p import PendingRecv
from sleeptrain.schedule import ScheduleAction, Value

ActionObserver = Callable[[Literal["begin", "arrived", "end"], ScheduleAction | Value], None]
"""Is told of every action that begins and ends, and of every message that an action waited for."""


class ActivationStore:
    """Values by name: tensors, dicts of leaves, lists of tensors or graphs; here, on their way, or put away."""

    def __init__(self, offloader: Offloader, observer: ActionObserver | None) -> None:
        self.offloader, self.observer = offloader, observer
        self.values: dict[Value, Any] = {}

    def get(self, value: Value) -> Any:
        """A value, as soon as it is here. KeyError for one that is not held: then the schedule is wrong."""
        found = self.values[value]
        if isinstance(found, PendingRecv):
            found = self.values[value] = found.tensor()
            if self.observer:
                self.observer("arrived", value)
        elif self.offloader.offload:
            found = self.values[value] = self.offloader.get(found)
        return found

    def put(self, value: Value, made: Any) -> None:
        """Hold a value."""
        self.values[value] = made

    def add(self, value: Value, more: Tensor | None) -> None:
        """Add to an adjoint of features; None means zero."""
        self.values[value] = add_optional(self.values.get(value), more)

    def add_leaves(self, value: Value, more: Mapping[str, Tensor]) -> None:
        """Add to adjoints of leaves; missing ones are zero."""
        total = self.values.setdefault(value, {})
        for name, adjoint in more.items():
            total[name] = total[name] + adjoint if name in total else adjoint

    def free(self, values: Iterable[Value]) -> None:
        """Forget values."""
        for value in values:
            del self.values[value]

    def offload(self, values: Iterable[Value]) -> None:
        """Move values to the host until they are asked for."""
        for value in values:
            self.values[value] = self.offloader.put(self.values[value])
