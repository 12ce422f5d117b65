"""Every kind of feedback that a recipe may name computes something of its own: one that is only half added would be another one."""

from itertools import combinations
from typing import get_args, get_type_hints

import pytest
import torch

from sleeptrain.program import Loop, Sleep
from tests.model import toy

KINDS = get_args(get_type_hints(Loop)["feedback"])


@pytest.fixture(scope="module")
def logits():
    """Of one model, with weights for gated feedback, on a text of three windows of which two sleep."""
    model, tokens = toy.model(gated=True), torch.arange(12)[None] % toy.VOCAB
    with torch.no_grad():
        return {
            kind: model(tokens, sleep=Sleep(window=4, passes=2, loop=Loop(feedback=kind, trigger="every")))
            for kind in KINDS
        }


@pytest.mark.parametrize(("one", "other"), combinations(KINDS, 2))
def test_kinds_of_feedback_differ(logits, one, other):
    assert torch.equal(logits[one][:, :4], logits[other][:, :4]), "the first window is predicted in pass 1"
    assert not torch.allclose(logits[one][:, 4:], logits[other][:, 4:], atol=1e-6)
