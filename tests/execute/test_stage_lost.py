"""The error of a pipeline stage when another stage exits or hangs."""

import os
import re
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from sleeptrain.execute.p2p import StageLost
from sleeptrain.schedule import Edge
from tests.distributed import run
from tests.execute import stages
from tests.model import toy


def lose_a_stage(how, when):
    """The last stage exits or hangs at its `when`-th event; returns the first one's error message."""
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
            dist.distributed_c10d._get_default_store().set("the other gave up", "")
        return str(error)


def test_the_other_stage_names_one_that_exited():
    assert_names_stage_one(run(lose_a_stage, 2, "exits", 40, lost=1)[0])


@pytest.mark.slow
def test_the_other_stage_names_one_that_hangs():
    assert_names_stage_one(run(lose_a_stage, 2, "hangs", 140)[0])


def assert_names_stage_one(message):
    # Whether a receive or a send notices the loss first depends on when the other process ends.
    lost = r"stage 0 of the pipeline (waited for|wanted to send) (RECV|SEND) .+, but stage 1 \(rank 1\) did not answer"
    assert re.match(lost, message), message


def receive_and_send():
    """The last stage exits; returns the first one's error messages of a receive and of a send."""
    p2p, messages = stages.p2p_channels(timeout=timedelta(seconds=60)), []
    there, back = Edge(0, 1, "forward"), Edge(1, 0, "backward")
    p2p.open([there, back], torch.device("cpu"))
    if p2p.stage == 1:
        os._exit(3)
    try:
        p2p.receive(back, torch.zeros(1), lambda: "a gradient").tensor()
    except StageLost as error:
        messages.append(str(error))
    try:
        # A send is complete when the system has the bytes, so that the first one over a lost connection may succeed.
        while True:
            p2p.send(there, torch.zeros(1), lambda: "a residual")
            p2p.flush()
    except StageLost as error:
        messages.append(str(error))
    return messages


def test_receives_and_sends_name_the_stage_that_exited():
    received, sent = run(receive_and_send, 2, lost=1)[0]
    assert received.startswith("stage 0 of the pipeline waited for a gradient, but stage 1 (rank 1) did not answer")
    assert sent.startswith("stage 0 of the pipeline wanted to send a residual, but stage 1 (rank 1) did not answer")
