"""A rank that hangs: the others say where every rank stands, leave its stacks behind, and end so that the run can be continued."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from sleeptrain.errors import ProcessLost
from sleeptrain.parallel.process import init_distributed
from sleeptrain.run.watchdog import HEARTBEATS
from tests.distributed import run
from tests.train.jobs import recipe_file, text_data, trained

TIMEOUT = 12
"""Seconds, enough for a step beside other work."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tmp_path_factory.mktemp("hang")
    text_data(made)
    recipe_file(made)
    return str(made)


def reading_hangs(folder: str, overrides: list[str]) -> str:
    """Rank 1 reads its data for ever at step 3. What rank 0 says in the end."""

    def spoil(setup: Any) -> None:
        read, steps = setup.reader.next_step, []

        def hanging() -> Any:
            steps.append(len(steps))
            if setup.process.rank == 1 and len(steps) == 3:
                dist.distributed_c10d._get_default_store().wait(["the others gave up"], timedelta(seconds=100))
                raise ProcessLost("as if it were killed")
            return read()

        setup.reader.next_step = hanging

    init_distributed(timedelta(seconds=TIMEOUT))
    words = ["train.steps=9", "train.batch=4", "sleep.window=16", "checkpoint.every=0", f"mesh.timeout={TIMEOUT}"]
    try:
        trained(Path(folder), "hang", Path(folder) / "text", [*words, *overrides], spoil)
    except ProcessLost as error:
        dist.distributed_c10d._get_default_store().set("the others gave up", "")
        return str(error)
    raise AssertionError("it did not hang")


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["mesh.data=2", "mesh.pipe=2"])
def test_a_rank_that_hangs_is_named_with_what_it_does(folder: str, mesh: str) -> None:
    said = run(reading_hangs, 2, folder, [mesh, "train.recompute=window"], timeout=120)[0]
    assert said.endswith("rank 0: computing, step 3; rank 1: reading data, step 3"), said
    stacks = Path(folder) / "hang" / HEARTBEATS
    assert "in hanging" in (stacks / "rank-00001.stacks").read_text()
    assert "sum_over_ranks" in (stacks / "rank-00000.stacks").read_text()
