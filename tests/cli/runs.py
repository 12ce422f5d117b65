"""Run folders with initial weights, created without training."""

from __future__ import annotations

import json
from pathlib import Path

from sleeptrain.data.manifest import Manifest
from sleeptrain.model.init import initialise
from sleeptrain.model.language import LanguageModel
from sleeptrain.recipe import complete, load_recipe, open_run
from tests.checkpoint.written import write_weights
from tests.cli.lines import TINY


def untrained(folder: Path, name: str, data: Path, *changes: str, never: int | None = None) -> Path:
    """Create the run `name` in `folder` with a checkpoint of step 0 that evaluation and sessions can read. Returns its folder.

    `never`: an id that is never the likeliest, such as that which ends a text.
    """
    recipe = folder / "small.yaml"
    recipe.write_text("train: {steps: 10, batch: 8}\n")
    run = folder / name
    words = [f"data.sources=[{{path: {data}}}]", *TINY, f"run_dir={run}", *changes]
    manifest = Manifest.from_json(json.loads((data / "manifest.json").read_text()))
    loaded = load_recipe(str(recipe), words)
    resolved = complete(loaded, manifest.cut(loaded.value.sleep.window, loaded.value.data.row))
    open_run(resolved, name, manifest)
    model = LanguageModel(resolved.value.model)
    initialise(model, 0, resolved.value.model.deltanet.horizon or 1)
    if never is not None:
        head = model.embed if model.head is None else model.head
        head.weight.data[never] = 0  # others have logits above 0
    write_weights(run / "checkpoints", 0, dict(model.named_parameters()))
    return run
