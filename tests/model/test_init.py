"""Initial parameter values, parameter counts and FLOPs."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sleeptrain.model import init
from sleeptrain.model.counts import block_flops, forward_flops, parameters, step_flops
from sleeptrain.model.init import half_lives, initialise
from sleeptrain.model.language import LanguageModel
from sleeptrain.program import Sleep, Window, compile
from tests.model import toy


def initialised(layers="AGAG", seed=0, horizon=64, **changes):
    m = LanguageModel(toy.config(layers, **changes))
    initialise(m, seed, horizon)
    return m


def test_values_depend_only_on_seed_and_name():
    a, b = dict(initialised("AGAG").named_parameters()), dict(initialised("AGAGAG").named_parameters())
    assert all(torch.equal(p, b[n]) for n, p in a.items())
    assert not torch.equal(a["embed.weight"], dict(initialised(seed=1).named_parameters())["embed.weight"])
    assert not torch.equal(a["layers.0.mlp.up.weight"], a["layers.1.mlp.up.weight"])


def test_values_do_not_depend_on_the_threads_that_draw_them(monkeypatch):
    alone = dict(initialised().named_parameters())
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert init.drawing_threads() == 1
    monkeypatch.setattr(init, "drawing_threads", lambda: 5)
    assert all(torch.equal(p, alone[n]) for n, p in initialised().named_parameters())


def test_an_error_in_a_thread_is_raised():
    def value(name, shape):
        raise ArithmeticError(name)

    with pytest.raises(ArithmeticError, match=r"embed\.weight"):
        init.fill(LanguageModel(toy.config()), value)


def test_a_model_from_the_meta_device_has_the_same_values():
    with torch.device("meta"):
        m = LanguageModel(toy.config())
    assert all(p.is_meta for p in m.parameters())
    m.to_empty(device="cpu")
    initialise(m, 0, 64)
    assert all(torch.equal(p, q) for p, q in zip(m.parameters(), initialised().parameters(), strict=True))


def test_every_kind_of_parameter_has_its_distribution():
    m = initialised(width=64, init_std=0.02)
    for name, p in m.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight", "norm1.weight", "norm2.weight")) or name == "norm.weight":
            assert not p.any()
        elif name.endswith("mixer.norm"):
            assert (p == 1).all()
        elif p.dim() == 2 and "conv_" not in name and p.numel() > 500:
            assert p.std().item() == pytest.approx(0.02, rel=0.15), name
    dt = F.softplus(m.layers[1].mixer.dt_bias)
    assert (dt >= 0.999e-3).all() and (dt <= 1.001e-1).all()


def test_half_lives_are_spaced_from_sixteen_tokens_to_the_horizon():
    m = initialised(horizon=1600)
    g = m.layers[1].mixer.decay(torch.zeros(4))
    lives = (math.log(0.5) / g).tolist()
    assert lives == pytest.approx([16, 16 * 100 ** (1 / 3), 16 * 100 ** (2 / 3), 1600], rel=1e-4)
    assert half_lives(1, 500).tolist() == [500] and half_lives(2, 3).tolist() == pytest.approx([16, 16])


def test_parameter_counts_by_part_sum_to_the_total():
    m = initialised()
    count = parameters(m)
    assert count["total"] == sum(p.numel() for p in m.parameters()) == sum(v for k, v in count.items() if k != "total")
    assert count["mlp"] == 4 * 3 * 12 * 16 and count["embedding"] == count["head"] == 11 * 12
    assert parameters(initialised(tie=True))["head"] == 0


@pytest.mark.parametrize("letter", ["A", "L", "G"])
def test_linear_flops_are_two_per_weight(letter):
    m = initialised(letter, width=32, attention=replace(toy.config().attention, local=2))
    weights = sum(p.numel() for n, p in m.layers.named_parameters() if p.dim() == 2)
    flops = block_flops(m.config, letter)
    assert flops.token == 2 * weights + (6 * 4 * 4**2 if letter == "G" else 0)
    assert flops.pair == (4 * 16 if letter == "A" else 0) and flops.local_pair == (4 * 16 if letter == "L" else 0)


def test_step_flops_grow_with_the_number_of_passes():
    layout, config = [Window(0, 8, False), Window(8, 16, True)], toy.config()
    one, four = (step_flops(config, compile(Sleep(window=8), layout, 4, n), Sleep(window=8)) for n in (1, 4))
    a_pass = float(forward_flops(config, (0, 4)) @ torch.tensor([8.0, 8 * 9 / 2, 0], dtype=torch.float64))
    assert four - one == pytest.approx(3 * 3 * a_pass)
