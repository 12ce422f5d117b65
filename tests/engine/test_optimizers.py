"""Parameter groups, and Muon and AdamW against torch's implementations."""

import pytest
import torch
from torch import Tensor, nn

from sleeptrain.engine.config import Optim
from sleeptrain.engine.muon import Muon
from sleeptrain.engine.optimizers import kind, make_optimizer, param_groups
from tests.engine.tiny import Tiny

MATRIX, VECTOR = torch.zeros(3, 4), torch.zeros(3)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("embed.weight", MATRIX, "plain"),
        ("head.weight", MATRIX, "plain"),
        ("norm.weight", VECTOR, "plain"),
        *[(f"layers.0.mixer.{which}.weight", MATRIX, "matrix") for which in ("q", "k", "v", "gate", "o", "z")],
        *[(f"layers.12.mixer.{which}.weight", MATRIX, "plain") for which in ("a", "b")],
        *[(f"layers.0.mixer.{which}.weight", VECTOR, "plain") for which in ("q_norm", "k_norm", "norm")],
        *[(f"layers.0.mixer.{which}", VECTOR, "plain") for which in ("A_log", "dt_bias")],
        *[(f"layers.0.mixer.conv_{which}", MATRIX, "plain") for which in "qkv"],
        *[(f"layers.0.{which}.weight", VECTOR, "plain") for which in ("norm1", "norm2")],
        *[(f"layers.0.mlp.{which}.weight", MATRIX, "matrix") for which in ("gate", "up", "down")],
    ],
)
def test_kind_of_every_parameter(name: str, shape: Tensor, expected: str) -> None:
    assert kind(name, shape) == expected


def test_groups_have_every_trainable_parameter_once_with_its_rate_and_decay() -> None:
    model = Tiny()
    model.embed.weight.requires_grad_(False)
    groups = {
        group["name"]: group for group in param_groups(model, Optim("muon", lr=0.02, adam_lr=0.003, weight_decay=0.1))
    }
    names = [name for group in groups.values() for name in group["names"]]
    assert sorted(names) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    assert {name: (g["peak"], g["weight_decay"], g["muon"]) for name, g in groups.items()} == {
        "matrix": (0.02, 0.1, True),
        "plain": (0.003, 0.0, False),
    }
    assert [g["peak"] for g in param_groups(model, Optim("adamw", lr=0.5))] == [0.5, 0.5]


def test_matrices_agree_with_torchs_muon() -> None:
    """The tolerance is for torch's Muon, which orthogonalises in bf16."""
    for shape in ((6, 6), (12, 5), (5, 12)):
        start = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
        options = {"lr": 0.1, "weight_decay": 0.3}
        one = Muon([{"params": [ours], "muon": True, **options}], momentum=0.9, ns_dtype=torch.float32)
        other = torch.optim.Muon([theirs], momentum=0.9, adjust_lr_fn="original", **options)
        for step in range(4):
            ours.grad = torch.randn(shape, generator=torch.Generator().manual_seed(10 + step))
            theirs.grad = ours.grad.clone()
            one.step()
            other.step()
        change = (theirs - start).abs().mean()
        assert (ours - theirs).abs().mean() < 0.02 * change


def test_other_parameters_agree_with_torchs_adamw_bitwise() -> None:
    mixed, plain = Tiny(), Tiny()
    one = make_optimizer(mixed, Optim("muon", lr=0.02, adam_lr=0.003))
    other = make_optimizer(plain, Optim("adamw", lr=0.003))
    assert type(other) is torch.optim.AdamW
    for step in range(3):
        for a, b in zip(mixed.parameters(), plain.parameters(), strict=True):
            a.grad = torch.randn(a.shape, generator=torch.Generator().manual_seed(step))
            b.grad = a.grad.clone()
        one.step()
        other.step()
    for (name, a), b in zip(mixed.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b) == (kind(name, a) != "matrix"), name
