"""Selective recompute: the outputs of matrix products, attention and the delta rule are saved, and all else runs again in backward.

A segment runs once in forward while the outputs of its products are recorded, and its graph is dropped. Before its backward it
runs again with the recorded outputs in place of the products: the graph is that of the first run, bit for bit, and only norms,
gates, convolutions and rotary embeddings are computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

T = TypeVar("T")
Products = list[Any]
"""The outputs of the products of one segment in the order of its work, each as its operator returns them."""
SAVED_OPERATORS = ("aten::mm", "aten::addmm", "aten::_scaled_dot_product_", "sleep_kernels::gated_delta_rule")
"""Beginnings of the names of the operators whose outputs are saved. An implementation of attention that torch composes of simpler
operators is not among them: its scores are recomputed, since they would take more memory than all else."""
ALL_REDUCE = "c10d::allreduce_"


def is_product(operator: Any) -> bool:
    """Whether the outputs of an operator (an OpOverload) are saved."""
    return str(operator.name()).startswith(SAVED_OPERATORS)


def record(run: Callable[[], T]) -> tuple[T, Products]:
    """`run()`, and the outputs of its products."""
    recording = _Recording()
    with recording:
        result = run()
    return result, recording.products


def replay(run: Callable[[], T], products: Products) -> T:
    """`run()` as when `products` were recorded, with them in place of computing them; once, since it may change them in place."""
    with _Replay(products):
        return run()


def tensors_of(products: Sequence[Any]) -> list[Tensor]:
    """The tensors of recorded outputs."""
    return [leaf for leaf in tree_leaves(list(products)) if isinstance(leaf, Tensor)]


def checkpoint_contexts() -> tuple[Any, Any]:
    """The same choice for torch's non-reentrant checkpoint: its `context_fn`.

    torch's own (create_selective_checkpoint_contexts, 2.13) requires that forward and recompute run the same operators. Under ZeRO 3 a
    region also gathers weights, in one of them or in both.
    """
    recording = _Recording()
    return recording, _Replay(recording.products)


class _Recording(TorchDispatchMode):
    """Keeps the outputs of products.

    Tensor parallelism sums a product over processes in place. Then the sum is what is kept, and replay leaves out the
    all-reduce. Before another operator changes a product in place, as linear layers under ZeRO 3 add their bias, the product is
    copied: replay runs that operator again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products: Products = []
        self._places: dict[int, int] = {}
        """The place in `products` by the address of the storage."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable and func.name() != ALL_REDUCE:
            self._copy_before(func, args, kwargs or {})
        out = func(*args, **(kwargs or {}))
        if is_product(func):
            # Detached: autograd gives the outputs a history, which would keep the whole graph alive.
            self.products.append(tree_map_only(Tensor, torch.Tensor.detach, out))
            self._places |= {_address(tensor): len(self.products) - 1 for tensor in tensors_of(self.products[-1:])}
        return out

    def _copy_before(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Copy the products that an operator will write to."""
        arguments = func._schema.arguments
        given = {argument.name: value for argument, value in zip(arguments, args, strict=False)} | dict(kwargs)
        written = [given.get(a.name) for a in arguments if a.alias_info is not None and a.alias_info.is_write]
        changed = {_address(tensor) for tensor in tensors_of(written)} & self._places.keys()

        def copied(tensor: Tensor) -> Tensor:
            return tensor.clone() if _address(tensor) in changed else tensor

        for place in {self._places.pop(address) for address in changed}:
            self.products[place] = tree_map_only(Tensor, copied, self.products[place])


class _Replay(TorchDispatchMode):
    """Returns recorded outputs in place of computing them."""

    def __init__(self, products: Products) -> None:
        super().__init__()
        self._products = products

    def __enter__(self) -> Any:
        self._next = iter(self._products)
        self._addresses = {_address(tensor) for tensor in tensors_of(self._products)}
        return super().__enter__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if is_product(func):
            return tree_map_only(Tensor, torch.Tensor.detach, next(self._next))
        if func.name() == ALL_REDUCE and all(_address(t) in self._addresses for t in args[0]):
            return args[0], torch._C._distributed_c10d.FakeWork().boxed()
        return func(*args, **(kwargs or {}))


def _address(tensor: Tensor) -> int:
    """The address of its storage."""
    return tensor.untyped_storage()._cdata
