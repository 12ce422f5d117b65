"""The batch layout over the processes of a run, and the comparison of their configurations."""

from __future__ import annotations

import pytest

from sleeptrain.errors import UserError
from sleeptrain.parallel.config import LayoutError, Mesh, batch_layout
from sleeptrain.parallel.process import init_distributed
from sleeptrain.train.setup import assert_same_config
from tests.distributed import run


def test_micro_batch_size_times_micro_batches_times_processes_is_the_batch_size() -> None:
    for (batch, micro, world), expected in {(64, None, 1): (64, 1), (64, None, 4): (16, 1), (64, 2, 4): (2, 8)}.items():
        layout = batch_layout(batch, micro, Mesh(), world)
        assert (layout.micro, layout.group * layout.accumulation) == expected
    for wrong in ((64, None, 3), (64, 3, 1), (64, 32, 4), (2, None, 4)):
        with pytest.raises(LayoutError, match="does not divide"):
            batch_layout(wrong[0], wrong[1], Mesh(), wrong[2])


def compare_configs(field: str) -> list[str] | None:
    """The errors of this rank when `field` differs between ranks; None if it may differ."""
    process = init_distributed()
    try:
        assert_same_config(process, {"train.batch": 8, field: process.rank})
    except UserError as error:
        return error.errors
    return None


def test_only_machine_specific_fields_may_differ_between_ranks() -> None:
    assert run(compare_configs, 2, "data.cache") == run(compare_configs, 2, "data.workers") == [None, None]
    first, second = run(compare_configs, 2, "data.seed")
    assert first is not None and "data.seed is 0 on rank 0 and 1 on rank 1" in first[0]
    assert second == []
