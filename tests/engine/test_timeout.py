"""How long an engine's processes wait for each other: the timeout of the run, in every group that DeepSpeed makes."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from sleeptrain.engine import Optim
from sleeptrain.parallel.process import init_distributed
from tests.distributed import run
from tests.engine.tiny import Tiny, make_engine


def timeouts(zero: int) -> list[float]:
    """Seconds that collectives of every process group wait once there is an engine."""
    init_distributed(timedelta(seconds=120))
    make_engine(Tiny(), Optim("adamw", lr=0.01), "fp32", zero)
    groups = list(dist.distributed_c10d._world.pg_map)
    return [group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in groups]


@pytest.mark.parametrize("zero", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_every_group_of_an_engine_waits_as_long_as_the_run(zero: int) -> None:
    """DeepSpeed reduces gradients in a clone of the group of all processes."""
    found = run(timeouts, 2, zero)
    assert all(len(seconds) >= 2 and set(seconds) == {120.0} for seconds in found), found
