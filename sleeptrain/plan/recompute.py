"""`train.recompute: auto`: the activation checkpointing that recomputes least among those whose planned memory fits a process."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from sleeptrain.config import Resolved
from sleeptrain.parallel.config import BatchLayout
from sleeptrain.plan.automatic import AUTO, without_auto
from sleeptrain.plan.data_layout import DataLayout
from sleeptrain.plan.device import DeviceMemory, needed
from sleeptrain.plan.memory import size
from sleeptrain.plan.plan import Plan, make_plan
from sleeptrain.recipe.recipe import Recipe
from sleeptrain.recipe.rules import RULES
from sleeptrain.schedule import RECOMPUTE_POLICIES
from sleeptrain.train.config import Train
from sleeptrain.train.layout import Layout, resolve_layout


def resolve_recompute(
    resolved: Resolved[Recipe], batch: BatchLayout, data_layout: DataLayout, memory: DeviceMemory
) -> tuple[Resolved[Recipe], str | None]:
    """A complete recipe with a policy in place of `auto`, and a line that says why; any other recipe as it is, and None."""
    recipe = resolved.value
    if recipe.train.recompute != AUTO:
        return resolved, None
    policy, why = _choose(resolve_layout(recipe, data_layout.windows, batch), data_layout, memory)
    places = resolved.places | {("train", "recompute"): "chosen by auto"}
    recipe = dataclasses.replace(recipe, train=_with(recipe.train, policy))
    return dataclasses.replace(resolved, value=recipe, places=places), why


def _choose(layout: Layout, data_layout: DataLayout, memory: DeviceMemory) -> tuple[str, str]:
    """The policy and why.

    Of the policies that fit it is the one that recomputes the fewest FLOPs, and of equals `none`, or the one that needs the least memory;
    if none fits, the one that needs the least.
    """
    plans = dict(_plans(layout, data_layout, memory.gpu))
    fitting = [policy for policy, plan in plans.items() if memory.holds(plan)]
    if not fitting:
        policy = min(plans, key=lambda policy: needed(plans[policy]))
        return policy, (
            f"{policy} (auto) needs {size(needed(plans[policy]))} a process and no policy less; it does not fit the {memory}. "
            "Use a smaller train.micro, train.offload=true, or more processes"
        )
    # FLOPs leave out elementwise work, of which only `none` recomputes nothing.
    policy = min(fitting, key=lambda policy: (plans[policy].recompute_flops, policy != "none", needed(plans[policy])))
    chosen = plans[policy]
    cheaper = min(
        (plan for plan in plans.values() if plan.recompute_flops < chosen.recompute_flops), key=needed, default=None
    )
    why = f"{size(needed(chosen))} a process of the {memory}; recompute adds {chosen.recompute_flops / chosen.flops:.0%} of FLOPs"
    if cheaper is not None:
        why += f"; {cheaper.job.train.recompute} needs {size(needed(cheaper))}"
    return policy, f"{policy} (auto) needs {why}"


def _with(train: Train, policy: str) -> Train:
    return dataclasses.replace(train, recompute=policy)  # type: ignore[arg-type]


def _plans(layout: Layout, data_layout: DataLayout, gpu: bool) -> Iterator[tuple[str, Plan]]:
    """The plan under every policy that may be combined with the rest of the recipe, on a CPU or a GPU."""
    train = layout.job.train
    for policy in RECOMPUTE_POLICIES:
        job = dataclasses.replace(layout.job, train=_with(train, policy))
        if any(rule.broken(job) for rule in RULES):
            continue
        yield policy, make_plan(dataclasses.replace(layout, job=without_auto(job, gpu)), data_layout)
