"""Collectives over all ranks of a run that compare values and share results, so that every rank goes on or every rank stops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from sleeptrain.errors import TryAgain, UserError
from sleeptrain.parallel.mesh import MeshAxis
from sleeptrain.parallel.process import Process

T = TypeVar("T")

MAX_DIFFERENCES = 5
"""Number of differing values that an error message lists."""


def assert_same_on_all_ranks(process: Process, values: Mapping[str, Any]) -> None:
    """Raise UserError on every rank unless all ranks passed equal `values`; only rank 0's error has a message.

    Compares `str(value)` by name, such as a dotted path of the recipe. Ranks with different settings would deadlock or train
    different models. Ranks exchange a hash first and the values only if the hashes differ.
    """
    texts = {name: str(value) for name, value in values.items()}
    hashes: list[Any] = [None] * process.world
    dist.all_gather_object(hashes, sha256(repr(sorted(texts.items())).encode()).hexdigest())
    if len(set(hashes)) == 1:
        return
    texts_by_rank: list[Any] = [None] * process.world
    dist.all_gather_object(texts_by_rank, texts)
    differences = _differences(texts_by_rank)
    hidden = len(differences) - MAX_DIFFERENCES
    more = f"; and {hidden} more" if hidden > 0 else ""
    message = (
        f"ranks have different values: {'; '.join(differences[:MAX_DIFFERENCES])}{more}; "
        "start every rank with the same recipe, overrides and data"
    )
    raise UserError([message] if process.rank == 0 else [])


def on_first_rank(process: Process, function: Callable[[], T]) -> T:
    """Call `function` on rank 0 and return its result on every rank.

    Broadcasts rank 0's result, UserError or TryAgain; every rank raises, only rank 0's error has a message.
    """
    outcome: list[Any] = [None]
    if process.rank == 0:
        try:
            outcome = [(*_call(function), None)]
        except TryAgain as error:
            outcome = [(None, [], str(error))]
    if process.world > 1:
        dist.broadcast_object_list(outcome, src=0)
    result, errors, again = outcome[0]
    _raise_on_all_ranks(process, errors)
    if again is not None:
        raise TryAgain(again if process.rank == 0 else "")
    return cast(T, result)


def on_every_rank(process: Process, function: Callable[[], T]) -> T:
    """Call `function` on every rank and return this rank's own result.

    Gathers the UserErrors of all ranks; if there is one, every rank raises, and rank 0's error has the messages of all ranks.
    """
    result, errors = _call(function)
    errors_by_rank: list[list[str]] = [errors] * process.world
    if process.world > 1:
        dist.all_gather_object(errors_by_rank, errors)
    if all(errors == errors_by_rank[0] for errors in errors_by_rank):
        messages = errors_by_rank[0]
    else:
        messages = [f"rank {rank}: {error}" for rank, errors in enumerate(errors_by_rank) for error in errors]
    _raise_on_all_ranks(process, messages)
    return cast(T, result)


def any_of(axis: MeshAxis, device: torch.device, fact: bool) -> bool:
    """Whether a fact holds on any process of a mesh axis; a collective over it, on `device`, which the group must support."""
    count = torch.tensor(int(fact), device=device)
    dist.all_reduce(count, dist.ReduceOp.MAX, group=axis.group)
    return bool(count)


def _differences(texts_by_rank: list[dict[str, str]]) -> list[str]:
    """One phrase for each name whose value differs between ranks: every value with the ranks that have it."""
    differences = []
    for name in dict.fromkeys(name for texts in texts_by_rank for name in texts):
        ranks_by_text: dict[str, list[int]] = {}
        for rank, texts in enumerate(texts_by_rank):
            ranks_by_text.setdefault(texts.get(name, "not given"), []).append(rank)
        if len(ranks_by_text) > 1:
            phrases = [
                f"{text} on rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
                for text, ranks in ranks_by_text.items()
            ]
            differences.append(f"{name} is {' and '.join(phrases)}")
    return differences


def _call(function: Callable[[], T]) -> tuple[T | None, list[str]]:
    """The result of `function`, and the messages of its UserError if it raised one."""
    try:
        return function(), []
    except UserError as error:
        return None, error.errors


def _raise_on_all_ranks(process: Process, errors: list[str]) -> None:
    """Raise UserError if there are errors; only rank 0's has the messages, so that they are printed once."""
    if errors:
        raise UserError(errors if process.rank == 0 else [])
