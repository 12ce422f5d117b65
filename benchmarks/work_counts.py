"""Work of launches: FLOPs, bytes, and the least time that they take on an H200; operators of torch counted on tensors without memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.launches import is_launch

FLOPS, COPY = 790e12, 2.7e12
"""FLOPs and bytes a second of an H200 in a large product and a large copy."""


@dataclass(frozen=True)
class Work:
    """Launches with their work, and the sum of their floors in seconds."""

    launches: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0

    @classmethod
    def of_launch(cls, flops: float, moved: float) -> Work:
        """One launch."""
        return cls(1, flops, moved, max(flops / FLOPS, moved / COPY))

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))

    def __mul__(self, times: float) -> Work:
        return Work(*(times * value for value in asdict(self).values()))


class OperatorCounter(TorchDispatchMode):
    """Counts the operators of torch that launch something: inputs and outputs once, FLOPs of products."""

    def __init__(self) -> None:
        super().__init__()
        self.work = Work()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if is_launch(func):
            # Memory that is only written is counted as the output: `out=`, and what a product adds to with a factor of zero.
            read = args[1:] if kwargs.get("beta") == 0 else args
            others = {name: value for name, value in kwargs.items() if name != "out"}
            tensors = [t for t in tree_leaves((read, others, out)) if isinstance(t, Tensor)]
            # Products in place have no formula of their own.
            count = flop_registry.get(func.overloadpacket) or flop_registry.get(
                getattr(torch.ops.aten, func._opname.rstrip("_"), None)
            )
            flops = count(*args, **kwargs, out_val=out) if count else 0
            self.work += Work.of_launch(flops, sum(t.numel() * t.itemsize for t in tensors))
        return out


def counted(run: Callable[..., Any]) -> Work:
    """The operators that a function of no arguments calls, on tensors without memory."""
    with FakeTensorMode(allow_non_fake_inputs=True), OperatorCounter() as counter:
        run()
    return counter.work
