"""The part of DeepSpeed's configuration that is derived from the model."""

import torch
from torch import nn

from sleeptrain.engine.settings import zero3_gathering
from tests.engine.tiny import Tiny


def billions() -> nn.Module:
    """Two blocks with a matrix of a billion elements and a vector of a million each, on the meta device."""
    with torch.device("meta"):
        return nn.ModuleList(nn.Linear(10**6, 10**3, bias=False) for _ in range(2)).extend(
            nn.LayerNorm(10**6, bias=False) for _ in range(2)
        )


def test_small_parameters_stay_gathered_up_to_a_hundredth_of_the_model() -> None:
    assert zero3_gathering(billions(), 0, "bf16", None) == {"stage3_param_persistence_threshold": 10**6}
    tiny = Tiny()
    threshold = zero3_gathering(tiny, 0, "fp32", None)["stage3_param_persistence_threshold"]
    sizes = [p.numel() for p in tiny.parameters()]
    assert sum(s for s in sizes if s <= threshold) <= sum(sizes) / 100


def test_reused_parameters_stay_gathered_if_a_quarter_of_the_device_holds_them() -> None:
    model, reused = billions(), 10**9
    keys = zero3_gathering(model, reused, "bf16", 80 * 10**9)
    assert keys["stage3_max_reuse_distance"] == 2 * reused
    assert keys["stage3_max_live_parameters"] > 2 * reused
    assert zero3_gathering(model, reused, "bf16", 8 * reused) == keys == zero3_gathering(model, reused, "bf16", None)
    for too_large in (
        zero3_gathering(model, reused, "bf16", 8 * reused - 1),
        zero3_gathering(model, reused, "fp32", 8 * reused),
    ):
        assert too_large.keys() == {"stage3_param_persistence_threshold"}  # DeepSpeed's default distance then applies
