"""Small data sets on disk, built once a session."""

import pytest

from sleep_data.build import build_task
from sleeptrain.data import Data, Source


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """100 training and 21 test samples of Rule 110, in several shards."""
    from sleep_data import shards
    from sleep_data.rule110 import Rule110

    out = tmp_path_factory.mktemp("data") / "r110"
    task = Rule110(strings=2, width=8, transitions=(1, 2))
    shards.build(task, out, {"train": 100, "test": 21}, seed=0, shard_bytes=5000)
    return out


@pytest.fixture(scope="session")
def other(tmp_path_factory):
    """60 training samples of another seed."""
    out = tmp_path_factory.mktemp("data") / "other"
    build_task(
        {"task": "rule110"}, out, {"strings": 2, "width": 8, "transitions": [1, 2], "train": 60, "test": 5, "seed": 1}
    )
    return out


@pytest.fixture
def data(folder):
    """The section `data:` that reads `folder`."""
    return Data([Source(str(folder))])
