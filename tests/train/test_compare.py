"""The comparison of trainings passes rounding of single weights and fails on a wrong gradient."""

import pytest
import torch

from tests.train.compare import assert_clipped, assert_same_training

ROW = {"loss": 2.0, "grad_norm": 0.9, "state_norm": 1.0, "state_gradient": 0.5, "targets": 8}
LR = 1e-3


def training(**changed):
    weights = {"q": torch.full((32, 32), 0.02), "norm": torch.ones(32), "A_log": torch.zeros(0)}
    return [ROW | changed], weights


def test_rounding_of_a_weight_with_hardly_a_gradient():
    found = training(loss=2.0 * (1 + 1e-6))
    found[1]["q"][3, 4] += 1e-6
    assert_same_training(found, training())


@pytest.mark.parametrize("name, at", [("q", (3, 4)), ("norm", (5,))])
def test_one_weight_with_a_wrong_gradient_fails(name, at):
    found = training()
    found[1][name][at] += LR
    with pytest.raises(AssertionError, match=name):
        assert_same_training(found, training())


@pytest.mark.parametrize("key, value", [("loss", 2.0001), ("state_gradient", 0.5001), ("targets", 9)])
def test_other_metrics_fail(key, value):
    with pytest.raises(AssertionError):
        assert_same_training(training(**{key: value}), training())


def test_lost_parameters_and_unclipped_gradients_fail():
    found = training()
    del found[1]["norm"]
    with pytest.raises(AssertionError):
        assert_same_training(found, training())
    assert_clipped(found[0], 0.3)
    with pytest.raises(AssertionError, match="not clipped"):
        assert_clipped([ROW, ROW | {"grad_norm": 0.2}], 0.3)
