"""Decoding compiled with torch.compile, and uncompiled where that cannot be done."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from sleeptrain.model.token import TokenFunctions

_LOG = logging.getLogger("sleeptrain")


@functools.cache
def compiled_functions(device: str) -> TokenFunctions:
    """The functions of a token for a type of device, compiled when they first run; all blocks of a kind and all sessions share them.

    Where something cannot be compiled, the functions run as they are from then on, and the log has one line with the reason.
    """
    from sleeptrain.model.compile_blocks import missing_compiler

    plain = TokenFunctions()
    if device == "cpu" and (obstacle := missing_compiler()):
        _LOG.warning("decoding runs uncompiled: %s", obstacle)
        return plain
    failed: list[str] = []
    return TokenFunctions(**{f.name: _compiled(getattr(plain, f.name), failed) for f in fields(plain)})


def _compiled(function: Callable[..., Any], failed: list[str]) -> Callable[..., Any]:
    """A function that is compiled unless one could not be, of which `failed` has the reason then."""
    from torch._dynamo.exc import TorchDynamoException  # 1.5 s

    from sleeptrain.model.compile_blocks import compiled_function

    graphs = compiled_function(function)  # the number of rows becomes variable with its second value

    def call(*arguments: Any) -> Any:
        if not failed:
            try:
                return graphs(*arguments)
            except (TorchDynamoException, RuntimeError) as error:
                # torch.compile has plain RuntimeErrors of its own; others are those of the computation.
                if not isinstance(error, TorchDynamoException) and not str(error).startswith("torch.compile"):
                    raise
                failed.append(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
                _LOG.warning("decoding runs uncompiled: torch.compile cannot compile it (%s)", failed[0])
        return function(*arguments)

    return call
