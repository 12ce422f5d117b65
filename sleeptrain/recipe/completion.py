"""What the data and the number of processes decide about a recipe, and whether they fit it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from sleeptrain.config import Resolved
from sleeptrain.data.manifest import Manifest
from sleeptrain.errors import UserError
from sleeptrain.parallel.config import BatchLayout, LayoutError
from sleeptrain.recipe.recipe import Recipe
from sleeptrain.train.layout import resolve_batch


def check_batch(resolved: Resolved[Recipe], world: int) -> BatchLayout:
    """The batch arithmetic of a run of `world` processes. Raises UserError, with sources, where mesh or batch do not fit."""
    try:
        return resolve_batch(resolved.value, world)
    except LayoutError as error:
        raise UserError(f"{' with '.join(map(resolved.at, error.fields))}: {error.reason}") from None


def complete(resolved: Resolved[Recipe], manifest: Manifest) -> Resolved[Recipe]:
    """Fill in what the data decides: `model.vocab` and `model.deltanet.horizon`.

    Raises UserError where recipe and data do not fit: vocabulary, window length, a trigger that would never sleep.
    """
    recipe = resolved.value
    if errors := [*_vocabulary(resolved, manifest), *_windows(resolved, manifest), *_trigger(resolved, manifest)]:
        raise UserError(errors)
    model = recipe.model
    horizon = model.deltanet.horizon or 2 * recipe.sleep.max_passes * manifest.length
    deltanet = dataclasses.replace(model.deltanet, horizon=horizon)
    model = dataclasses.replace(model, vocab=model.vocab or manifest.vocab, deltanet=deltanet)
    derived = {"model.vocab": recipe.model.vocab, "model.deltanet.horizon": recipe.model.deltanet.horizon}
    places = resolved.places | {
        tuple(path.split(".")): "derived from the data" for path, given in derived.items() if given is None
    }
    return dataclasses.replace(resolved, value=dataclasses.replace(recipe, model=model), places=places)


def paths_of(recipe: Recipe) -> str:
    """The folders of a recipe's data, for messages."""
    return ", ".join(source.path for source in recipe.data.sources)


def _vocabulary(resolved: Resolved[Recipe], manifest: Manifest) -> Iterator[str]:
    vocab = resolved.value.model.vocab
    if vocab is not None and vocab < manifest.vocab:
        yield (
            f"{resolved.at('model.vocab')}: the data in {paths_of(resolved.value)} has {manifest.vocab} tokens; "
            "raise it, or set null to take the data's"
        )


def _windows(resolved: Resolved[Recipe], manifest: Manifest) -> Iterator[str]:
    sleep, mesh, data = resolved.value.sleep, resolved.value.mesh, paths_of(resolved.value)
    lengths = [w.stop - w.start for w in manifest.windows]
    longest, sizes = max(lengths), ", ".join(map(str, sorted(set(lengths))))
    if sleep.window != longest:
        # Training follows the windows of the data, inference those of the recipe.
        yield f"{resolved.at('sleep.window')}: the data in {data} has windows of {longest} tokens; set sleep.window={longest}"
    elif sleep.evict.mode == "sliding" and any(length != longest for length in lengths[:-1]):
        yield (
            f"{resolved.at('sleep.evict.mode')}: sliding eviction needs windows of equal length, and those in {data} have {sizes} tokens; "
            "set sleep.evict.mode=hard"
        )
    if mesh.sequence and (odd := sorted({length for length in lengths if length % mesh.tensor})):
        yield (
            f"{resolved.at('mesh.sequence')} with {resolved.at('mesh.tensor')}: {mesh.tensor} processes cannot divide windows of "
            f"{' and '.join(map(str, odd))} tokens, as in {data}; build windows of a multiple, or set mesh.sequence=false"
        )


def _trigger(resolved: Resolved[Recipe], manifest: Manifest) -> Iterator[str]:
    sleep, data = resolved.value.sleep, paths_of(resolved.value)
    if sleep.max_passes == 1:
        return
    if sleep.loop.trigger == "context" and all(w.targets for w in manifest.windows):
        yield (
            f"{resolved.at('sleep.loop.trigger')}: every window of {data} has targets, so no window would sleep and passes = "
            f"{sleep.max_passes} would change nothing; set sleep.loop.trigger=every, or sleep.passes=1"
        )
    if sleep.loop.trigger != "every" or len(manifest.windows) > 1:
        return
    nothing = f"passes = {sleep.max_passes} would change nothing"
    if manifest.block is None:
        yield (
            f"{resolved.at('sleep.loop.trigger')}: samples of {data} are one window, and the last window of a sample never sleeps, so "
            f"{nothing}; build data with several windows per sample, or set sleep.passes=1"
        )
    else:
        reason = f"the last window of a row never sleeps, so {nothing}"
        if resolved.value.data.lane is not None:
            reason = "the later passes over the last window of a lane's row have no gradient, so nothing would learn to sleep"
        yield (
            f"{resolved.at('sleep.loop.trigger')}: rows of {data} are one window (data.row = {manifest.length}), and {reason}; "
            "set data.row to several windows, or sleep.passes=1"
        )
