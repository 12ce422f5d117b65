"""The error of a pipeline stage when another stage exits or hangs."""

import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from sleeptrain.execute.p2p import StageLost
from tests.distributed import run
from tests.execute import stages
from tests.model import toy


def lose_a_stage(folder, how, when):
    """The last stage exits or hangs at its `when`-th event; the first writes its error message to a file."""
    # A lost connection is noticed at once. Only a stage that hangs is waited for, on a busy machine too.
    p2p, events = stages.p2p_channels(timeout=timedelta(seconds=60 if how == "exits" else 15)), []

    def fail(stage, event, subject):
        events.append(subject)
        if p2p.stage == 1 and len(events) == when:
            if how == "exits":
                os._exit(3)
            dist.distributed_c10d._get_default_store().get("the other gave up")

    try:
        stages.run_observed(p2p, toy.model(), stages.EVERY, (2,), "pass", 2, fail)
    except StageLost as error:
        if p2p.stage == 0:
            Path(folder, "message").write_text(str(error))
            dist.distributed_c10d._get_default_store().set("the other gave up", "")


def test_the_other_stage_names_one_that_exited(tmp_path):
    with pytest.raises(AssertionError, match="rank 1 of 2 died"):
        run(lose_a_stage, 2, str(tmp_path), "exits", 40)
    assert_names_stage_one((tmp_path / "message").read_text())


@pytest.mark.slow
def test_the_other_stage_names_one_that_hangs(tmp_path):
    run(lose_a_stage, 2, str(tmp_path), "hangs", 140)
    assert_names_stage_one((tmp_path / "message").read_text())


def assert_names_stage_one(message):
    assert message.startswith("stage 0 of the pipeline waited for ") and "stage 1 (rank 1) did not answer" in message
