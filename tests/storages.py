"""Memory of the tensors that operators create, counted in storages: exact, and independent of allocator, CPU and threads."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

PYTHON_OPERATORS = "sleep_kernels"
"""Namespace of operators whose kernels are Python code, which call further operators."""


class StorageCounter(TorchDispatchMode):
    """Counts the bytes of storages that operators create inside the `with` block and that still exist.

    `peak` is exact where sizes change in operators alone; `alive` is always exact. A storage is counted from its creation until its last
    reference is gone, whether a variable, a closure, a cache or a saved tensor of autograd holds it. It is counted once, however many
    tensors share it, at its current size. An output that shares storage with an input, such as a view, is not a new storage, so memory
    from before the block is never counted. Meta tensors have no memory and are not counted.

    Operators inside those of `sleep_kernels` are counted too, so their temporaries are seen. Scratch memory inside an ATen
    operator never becomes a tensor and is not counted; it depends on the CPU and on the number of threads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        """Largest value of `alive` after any operator in the block."""
        self._known: dict[int, StorageWeakRef] = {}
        self._created: dict[int, int] = {}
        """Size of each counted storage when it was last looked at."""
        self._bound = 0
        """At least the bytes that exist: as if nothing had been released since `alive` was last computed."""

    @property
    def alive(self) -> int:
        """Bytes of the counted storages that exist now."""
        self._known = {key: reference for key, reference in self._known.items() if not reference.expired()}
        self._created = {key: _nbytes(self._known[key]) for key in self._created if key in self._known}
        self._bound = sum(self._created.values())
        return self._bound

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and count the storages of its outputs that are not storages of its inputs."""
        kwargs = kwargs or {}
        if func is not torch.ops.aten.lift_fresh.default:  # its input is a new tensor that torch.tensor has just filled
            self._note((args, kwargs), created=False)
        if func.namespace == PYTHON_OPERATORS:
            # Calls the Python kernel with this mode active; func(...) would call it with the mode inactive.
            device = next(_tensors(args)).device
            keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, device.type.upper()))
            with self:
                out = func.redispatch(keys, *args, **kwargs)
        else:
            out = func(*args, **kwargs)
        self.created(out)
        return out

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Compiled graphs run compiled in the block."""
        return True

    def created(self, tensors: Any) -> None:
        """Count the storages of new tensors."""
        self._note(tensors, created=True)
        if self._bound > self.peak:  # else nothing that was created can have raised the peak
            self.peak = max(self.peak, self.alive)

    def _note(self, tensors: Any, *, created: bool) -> None:
        """Remember storages that are not known yet, and whether an operator created them."""
        for tensor in _tensors(tensors):
            if not tensor.is_meta:
                storage = tensor.untyped_storage()
                # A weak reference keeps the address of a storage from being used again.
                key, size = storage._cdata, storage.nbytes()
                if key not in self._known:
                    self._known[key] = StorageWeakRef(storage)
                    if created:
                        self._created[key] = size
                        self._bound += size
                elif size > self._created.get(key, size):
                    self._bound += size - self._created[key]
                    self._created[key] = size


@contextmanager
def graphs_counted() -> Iterator[None]:
    """Within, StorageCounter also sees what graphs allocate that TorchInductor compiles within.

    Their generated code calls one function for each buffer, not an operator. torch's profiler sees these too, but not what threads of
    gloo release, so that its peak depends on their timing.
    """
    guards = torch._C._dynamo.guards
    allocate = guards._empty_strided_cpu

    def counted(*sizes: Any) -> Tensor:
        tensor: Tensor = allocate(*sizes)
        for mode in _get_current_dispatch_mode_stack():
            if isinstance(mode, StorageCounter):
                mode.created(tensor)
        return tensor

    with mock.patch.object(guards, "_empty_strided_cpu", counted):
        yield


def live_storages() -> dict[int, torch.UntypedStorage]:
    """Live storages of all tensors, by address. The references prevent reuse of the addresses."""
    gc.collect()
    tensors = [item for item in gc.get_objects() if type(item) in (torch.Tensor, torch.nn.Parameter)]
    return {storage.data_ptr(): storage for tensor in tensors if (storage := _storage(tensor)) is not None}


def _storage(tensor: Tensor) -> torch.UntypedStorage | None:
    """The storage of a tensor; None for one without memory: a meta tensor, or a fake one that torch.compile has left."""
    storage = tensor.untyped_storage()
    try:
        storage.data_ptr()
    except RuntimeError:
        return None
    return None if tensor.is_meta else storage


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of an operator's arguments or results. torch's own function for any tree takes most of a counted step."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)


def _nbytes(reference: StorageWeakRef) -> int:
    """Current size of a storage; 0 if it is gone."""
    storage = torch.UntypedStorage._new_with_weak_ptr(reference.cdata)
    return 0 if storage is None else storage.nbytes()
