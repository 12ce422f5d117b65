"""The batch over processes, and errors of one rank that all must hear of."""

from __future__ import annotations

from typing import Any

import pytest

from sleeptrain.config import UserError
from sleeptrain.parallel.config import Mesh, batch_layout
from sleeptrain.parallel.process import init_distributed
from sleeptrain.train.setup import on_every_rank, on_first_rank
from tests.distributed import run


def test_rows_of_a_micro_batch_times_micro_batches_times_processes_are_the_batch() -> None:
    for (batch, micro, world), wanted in {(64, None, 1): (64, 1), (64, None, 4): (16, 1), (64, 2, 4): (2, 8)}.items():
        found = batch_layout(batch, micro, Mesh(), world)
        assert (found.micro, found.group * found.accumulation) == wanted
    for wrong in ((64, None, 3), (64, 3, 1), (64, 32, 4), (2, None, 4)):
        with pytest.raises(ValueError, match="does not divide"):
            batch_layout(wrong[0], wrong[1], Mesh(), wrong[2])


def talk() -> list[Any]:
    process = init_distributed()
    found: list[Any] = [
        on_first_rank(process, lambda: f"from {process.rank}"),
        on_every_rank(process, lambda: f"from {process.rank}"),
    ]

    def fails(*ranks: int) -> None:
        if process.rank in ranks:
            raise UserError("no data here")

    for on, ranks in ((on_first_rank, (0,)), (on_every_rank, (1,)), (on_every_rank, (0, 1))):
        try:
            on(process, lambda ranks=ranks: fails(*ranks))
            found.append("fine")
        except UserError as error:
            found.append(error.errors)
    return found


def test_an_error_of_one_rank_ends_all_and_is_said_once() -> None:
    first, second = run(talk, 2)
    assert first == ["from 0", "from 0", ["no data here"], ["rank 1: no data here"], ["no data here"]]
    assert second == ["from 0", "from 1", [], [], []]
