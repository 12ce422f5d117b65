"""Plans of small recipes, for tests."""

from dataclasses import replace

from sleeptrain.plan import make_plan, planned_world, resolve_data
from sleeptrain.recipe import check_batch, load_recipe
from sleeptrain.train.layout import resolve_layout

SMALL = [
    "model.width=32", "model.layers=GAGA", "model.attention.heads=4", "model.attention.kv_heads=2", "model.attention.head_dim=8",
    "model.deltanet.key_heads=2", "model.deltanet.value_heads=4", "model.deltanet.head_dim=8", "model.mlp.hidden=48",
    "data.sources=[{path: nowhere/text}]", "sleep.window=16", "sleep.passes=3", "optim.name=adamw", "optim.lr=0.001",
    "train.batch=4", "train.micro=2", "mesh.group=2",
]  # fmt: skip
"""Overrides of text-small: four blocks, three passes over all windows but the last, two micro-batches of two rows in one
backward."""


def resolved_of(*overrides, windows=3, mask=None):
    """A complete recipe and its data layout, without padding by default."""
    resolved, layout = resolve_data(load_recipe("text-small", [*SMALL, *overrides]), windows)
    return resolved, replace(layout, mask=mask)


def layout_of(*overrides, windows=3, world=None):
    """The resolved layout of a small recipe."""
    resolved, data_layout = resolved_of(*overrides, windows=windows)
    return resolve_layout(resolved.value, data_layout.windows, _batch(resolved, world))


def plan_of(*overrides, windows=3, mask=None, world=None):
    """The plan of a small recipe, made with the calls of `sleeptrain plan`."""
    resolved, layout = resolved_of(*overrides, windows=windows, mask=mask)
    return make_plan(resolve_layout(resolved.value, layout.windows, _batch(resolved, world)), layout)


def _batch(resolved, world):
    return check_batch(resolved, planned_world(resolved.value, world))
