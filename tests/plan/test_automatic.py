"""`train.compile: auto` and `train.cuda_graphs: auto`: what they are on a CPU and on a GPU, which need not be there."""

from __future__ import annotations

import pytest

from sleeptrain.plan import DeviceMemory, resolve_auto, resolve_recompute, search
from sleeptrain.plan.device import needed
from sleeptrain.plan.hardware import Hardware
from sleeptrain.plan.plan import make_plan
from sleeptrain.recipe import check_batch, load_recipe
from sleeptrain.recipe.rules import RULES
from sleeptrain.recipe.support_matrix import BASE
from sleeptrain.train.layout import COMPILE, CUDA_GRAPHS, resolve_layout
from tests.plan.plans import resolved_of

GPU, CPU = DeviceMemory(1e12, "a device", gpu=True), DeviceMemory(1e12, "this machine")


def chosen(memory, *overrides, world=1):
    """The layout of a small recipe on a device, and what is said."""
    resolved, data_layout = resolved_of(*overrides)
    layout = resolve_layout(resolved.value, data_layout.windows, check_batch(resolved, world))
    layout, lines = resolve_auto(layout, data_layout, memory)
    assert resolved.value.train.compile in ("auto", True, False), "the recipe keeps what it says"
    return layout, lines


@pytest.mark.parametrize("memory", [None, CPU])
@pytest.mark.parametrize("policy", ["none", "pass"])
def test_on_a_cpu_both_are_off_without_a_word(memory, policy):
    layout, lines = chosen(memory, f"train.recompute={policy}")
    train = layout.job.train
    assert (train.compile, train.cuda_graphs, train.compiled, train.graphed) == (False, False, None, False)
    assert lines == () and not layout.automatic


def test_on_a_gpu_both_are_on():
    layout, lines = chosen(GPU, "train.recompute=pass")
    assert layout.job.train.compiled == "none" and layout.job.train.graphed
    assert lines == () and layout.automatic == {COMPILE, CUDA_GRAPHS}


REFUSED = {
    "none": (["train.recompute=none"], "none", ["train.cuda_graphs is off (auto): every pass keeps its own saved activations"]),
    "selective": (["train.recompute=selective"], "selective", ["train.cuda_graphs is off (auto): every pass keeps its own"]),
    "tensor": (["train.recompute=pass", "mesh.tensor=2"], "none", ["train.cuda_graphs is off (auto): no graph has been captured on a GPU with the messages of tensor"]),
    "tensor, selective": (
        ["train.recompute=selective", "mesh.tensor=2"],
        None,
        ["train.compile is off (auto): the graph of a block would save what is summed", "train.cuda_graphs is off (auto): "],
    ),
    "zero 3": (
        ["train.recompute=pass", "mesh.zero=3", "mesh.group=0"],
        None,
        ["train.compile is off (auto): ZeRO 3 gathers", "train.cuda_graphs is off (auto): a CUDA graph reads parameters at fixed"],
    ),
    "pipe": (["train.recompute=pass", "mesh.pipe=2"], "none", ["train.cuda_graphs is off (auto): no graph has been captured"]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_rule_refuses_is_left_off_with_its_reason(name):
    overrides, compiled, starts = REFUSED[name]
    layout, lines = chosen(
        GPU, *overrides, world=2 if "mesh.tensor=2" in overrides or "mesh.pipe=2" in overrides else 1
    )
    assert layout.job.train.compiled == compiled and not layout.job.train.graphed
    assert len(lines) == len(starts) and all(line.startswith(start) for line, start in zip(lines, starts, strict=True))
    assert layout.automatic == ({COMPILE} if compiled else set())
    assert not any(rule.broken(layout.job) for rule in RULES)


def test_what_the_recipe_says_is_kept():
    said = ["train.recompute=pass", "train.compile={}", "train.cuda_graphs={}"]
    for memory in (GPU, CPU):
        for value in ("true", "false"):
            layout, lines = chosen(memory, *(word.format(value) for word in said))
            assert layout.job.train.compile is layout.job.train.cuda_graphs is (value == "true")
            assert lines == () and not layout.automatic


@pytest.mark.slow
def test_graphs_need_memory_beside_the_plan():
    """A GPU that holds the plan and the graphs' pool, and one that has a byte less of it."""
    words = ["train.recompute=pass", "train.precision=bf16", "mesh.zero=2"]
    resolved, data_layout = resolved_of(*words, "train.compile=true", "train.cuda_graphs=true")
    layout = resolve_layout(resolved.value, data_layout.windows, check_batch(resolved, 1))
    (memory,) = make_plan(layout, data_layout).memory
    assert memory.graphs > 0
    most = (memory.total + memory.graphs) / 0.9
    for total, on in ((most * 1.0001, True), (most * 0.9999, False)):
        layout, lines = chosen(DeviceMemory(total, "a device", gpu=True), *words)
        assert layout.job.train.graphed is on
        assert [line.partition(":")[0] for line in lines] == ([] if on else ["train.cuda_graphs is off (auto)"])


@pytest.mark.slow
def test_recompute_auto_plans_what_will_run():
    """Compiled blocks on a GPU save less, so that a policy fits there that does not fit on a CPU of the same memory."""
    large = ["sleep.window=64", "model.width=64", "model.mlp.hidden=256", "train.recompute=auto"]
    resolved, data_layout = resolved_of(*large)
    batch = check_batch(resolved, 1)

    def plan(*changes):
        resolved, data_layout = resolved_of(*large[:-1], *changes)
        return needed(make_plan(resolve_layout(resolved.value, data_layout.windows, batch), data_layout))

    eager, compiled = plan("train.recompute=none"), plan("train.recompute=none", "train.compile=true")
    assert compiled < eager
    for gpu, policy in ((True, "none"), (False, "selective")):
        memory = DeviceMemory((compiled + eager) / 2 / 0.9, "a device", gpu)
        found, _ = resolve_recompute(resolved, batch, data_layout, memory)
        assert found.value.train.recompute == policy and found.value.train.compile == "auto"


@pytest.mark.slow
def test_a_search_plans_what_will_run():
    def reload(changes):
        return resolved_of("train.micro=1", "train.recompute=block", *changes)

    for gpu in (True, False):
        found = search(reload, 1, DeviceMemory(1e12, "a device", gpu), Hardware())
        assert found.best and all((each.plan.job.train.compiled is not None) is gpu for each in found.best)
        assert not any("compile" in word or "graphs" in word for word in found.best[0].choice.overrides())


ABOUT = [rule for rule in RULES if {COMPILE, CUDA_GRAPHS} & set(rule.fields)]


@pytest.mark.parametrize("rule", ABOUT, ids=lambda rule: rule.name)
def test_no_rule_refuses_auto(rule):
    words = [
        word.replace("=true", "=auto") if word.startswith((COMPILE, CUDA_GRAPHS)) else word for word in rule.example
    ]
    assert words != list(rule.example)
    load_recipe("rule110-tiny", [*BASE, *words])
