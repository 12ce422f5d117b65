"""Imports DeepSpeed's Muon without TorchInductor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock


def import_muon_uncompiled() -> None:
    """Imports DeepSpeed's module of Muon with functions that are not compiled. Call before `deepspeed.initialize`.

    Without it (DeepSpeed 0.19.8, torch 2.13): `deepspeed.initialize` imports that module for every optimizer, to compare types.
    Three decorators in it call `torch.compile`, which imports TorchInductor: 1.5 s of a CPU at the start of every process.
    `engine.muon` is our Muon, so that nothing calls these functions.
    """
    from deepspeed.runtime import compiler

    with mock.patch.object(compiler, "compile", _not_compiled):
        import deepspeed.runtime.zero.muon.original_muon  # noqa: F401


def _not_compiled(*_: Any, **__: Any) -> Callable[[Any], Any]:
    return lambda function: function
