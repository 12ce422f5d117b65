"""`train.recompute: auto`: which activation checkpointing is chosen for a memory, and what is said about it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sleeptrain.plan import AUTO, DeviceMemory, resolve_recompute
from sleeptrain.plan.device import needed, process_memory
from sleeptrain.recipe import check_batch
from tests.plan.plans import layout_of, plan_of, resolved_of

LARGE = ["sleep.window=64", "model.width=64", "model.mlp.hidden=256", "model.layers=GAGAGA"]
"""Large enough that what the policies keep differs by more than everything else."""


@pytest.fixture(scope="module")
def plans():
    return {
        policy: plan_of(*LARGE, f"train.recompute={policy}")
        for policy in ("none", "selective", "block", "pass", "window")
    }


def chosen(total, *overrides):
    """The policy for a device of `total` bytes, and the line about it."""
    resolved, data_layout = resolved_of(*LARGE, "train.recompute=auto", *overrides)
    resolved, why = resolve_recompute(resolved, check_batch(resolved, 1), data_layout, DeviceMemory(total, "a device"))
    return resolved, why


def test_the_cheapest_that_fits_is_chosen(plans):
    """For memories on both sides of what each policy needs."""
    assert plans["none"].recompute_flops == 0 < plans["pass"].recompute_flops < plans["window"].recompute_flops
    found = set()
    for limit in sorted(needed(plan) for plan in plans.values()):
        for usable in (limit * 1.001, limit * 0.999):
            resolved, why = chosen(usable / 0.9)
            policy = resolved.value.train.recompute
            fits = {name: plan for name, plan in plans.items() if needed(plan) <= usable}
            assert why.startswith(f"{policy} (auto) needs ")
            if fits:
                assert policy in fits
                assert plans[policy].recompute_flops == min(plan.recompute_flops for plan in fits.values())
                found.add(policy)
            else:
                assert needed(plans[policy]) == min(map(needed, plans.values()))
                assert "it does not fit" in why and "train.micro" in why
    assert "none" in found and len(found) >= 2


def test_offload_needs_checkpoints():
    resolved, _ = chosen(1e15, "train.offload=true")
    assert resolved.value.train.recompute != "none"


def test_compiled_blocks_save_products_alone_where_torch_s_choice_does_not_fit():
    """Both recompute no product; elementwise work, which FLOPs leave out, is less under `none`."""
    both = {
        policy: needed(plan_of(*LARGE, "train.compile=true", f"train.recompute={policy}"))
        for policy in ("none", "selective")
    }
    assert both["selective"] < both["none"]
    for limit, expected in ((both["none"] * 1.001, "none"), (both["none"] * 0.999, "selective")):
        resolved, why = chosen(limit / 0.9, "train.compile=true")
        assert resolved.value.train.recompute == expected
        assert "recompute adds 0% of FLOPs" in why


def test_a_policy_that_the_recipe_names_is_kept():
    resolved, data_layout = resolved_of(*LARGE, "train.recompute=window")
    same, why = resolve_recompute(resolved, check_batch(resolved, 1), data_layout, DeviceMemory(1.0, "a device"))
    assert same is resolved and why is None


def test_the_saved_recipe_has_the_policy_and_where_it_comes_from():
    resolved, _ = chosen(1e15)
    assert resolved.sources["train.recompute"] == "chosen by auto"
    assert any("recompute: none" in line and "chosen by auto" in line for line in resolved.to_yaml().splitlines())


def test_nothing_runs_before_a_policy_is_chosen():
    layout = layout_of("train.recompute=auto")
    assert layout.job.train.recompute == AUTO
    with pytest.raises(ValueError, match=r"train\.recompute is auto"):
        _ = layout.schedule


def test_processes_of_a_machine_share_its_memory(monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=8e9))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert process_memory(torch.device("cpu")) == DeviceMemory(8e9, "this machine's free memory")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert process_memory(torch.device("cpu")) == DeviceMemory(2e9, "this machine's free memory, shared by 4 processes")
