"""What is derived for DeepSpeed from the model."""

import torch
from torch import nn

from sleeptrain.engine.settings import zero3_gathering
from tests.engine.tiny import Tiny


def billions() -> nn.Module:
    """2 blocks of a billion elements and a vector of a million each."""
    with torch.device("meta"):
        return nn.ModuleList(nn.Linear(10**6, 10**3, bias=False) for _ in range(2)).extend(
            nn.LayerNorm(10**6, bias=False) for _ in range(2)
        )


def test_small_parameters_stay_whole_up_to_a_hundredth_of_the_model() -> None:
    assert zero3_gathering(billions(), 0, "bf16", None) == {"stage3_param_persistence_threshold": 10**6}
    tiny = Tiny()
    threshold = zero3_gathering(tiny, 0, "fp32", None)["stage3_param_persistence_threshold"]
    sizes = [p.numel() for p in tiny.parameters()]
    assert sum(s for s in sizes if s <= threshold) <= sum(sizes) / 100


def test_what_is_looped_stays_if_a_quarter_of_the_device_holds_it() -> None:
    model, looped, bytes_ = billions(), 10**9, 80 * 10**9
    kept = zero3_gathering(model, looped, "bf16", bytes_)
    assert kept["stage3_max_reuse_distance"] == 2 * looped
    assert kept["stage3_max_live_parameters"] > 2 * looped
    assert zero3_gathering(model, looped, "bf16", 8 * looped) == kept == zero3_gathering(model, looped, "bf16", None)
    for too_much in (
        zero3_gathering(model, looped, "bf16", 8 * looped - 1),
        zero3_gathering(model, looped, "fp32", 8 * looped),
    ):
        assert too_much.keys() == {"stage3_param_persistence_threshold"}  # DeepSpeed's own distance is no loop's
