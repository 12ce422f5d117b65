"""Collectives that compare values or share a result or an error over all ranks."""

from __future__ import annotations

from typing import Any

import pytest

from sleeptrain.errors import UserError
from sleeptrain.parallel.collectives import assert_same_on_all_ranks, on_every_rank, on_first_rank
from sleeptrain.parallel.process import init_distributed
from tests.distributed import run


def results_and_errors() -> list[Any]:
    """What this rank gets from calls that succeed, then the errors it raises when some ranks fail."""
    process = init_distributed()
    found: list[Any] = [
        on_first_rank(process, lambda: f"from {process.rank}"),
        on_every_rank(process, lambda: f"from {process.rank}"),
    ]

    def fail_on(*ranks: int) -> None:
        if process.rank in ranks:
            raise UserError("no data here")

    for collective, ranks in ((on_first_rank, (0,)), (on_every_rank, (1,)), (on_every_rank, (0, 1))):
        try:
            collective(process, lambda ranks=ranks: fail_on(*ranks))
            found.append("fine")
        except UserError as error:
            found.append(error.errors)
    return found


def test_an_error_of_one_rank_is_raised_on_all_ranks_and_reported_by_rank_0() -> None:
    first, second = run(results_and_errors, 2)
    assert first == ["from 0", "from 0", ["no data here"], ["rank 1: no data here"], ["no data here"]]
    assert second == ["from 0", "from 1", [], [], []]


def compare(values_by_rank: list[dict[str, Any]]) -> list[str] | None:
    process = init_distributed()
    try:
        assert_same_on_all_ranks(process, values_by_rank[process.rank])
    except UserError as error:
        return error.errors
    return None


def test_equal_values_pass_on_all_ranks() -> None:
    assert run(compare, 2, [{"a": 1, "b": 2}, {"b": 2, "a": 1}]) == [None, None]


@pytest.mark.parametrize(
    ("one", "other", "differences"),
    [
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, "b is 2 on rank 0 and 3 on rank 1"),
        ({"a": 1}, {}, "a is 1 on rank 0 and not given on rank 1"),
        (
            dict.fromkeys("abcdefg", 1),
            dict.fromkeys("abcdefg", 2),
            "; ".join(f"{name} is 1 on rank 0 and 2 on rank 1" for name in "abcde") + "; and 2 more",
        ),
    ],
)
def test_different_values_are_named_with_their_ranks(one: dict, other: dict, differences: str) -> None:
    first, second = run(compare, 2, [one, other])
    assert first == [
        f"ranks have different values: {differences}; start every rank with the same recipe, overrides and data"
    ]
    assert second == []
