"""The windows of a recipe's data: from its manifest, or, before it is built, from the task that builds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sleep_data.task import Vocabulary
from sleep_data.tasks import make
from sleep_data.tokenize import open_tokenizer
from sleeptrain.config import Resolved
from sleeptrain.data.budget import SourceSize
from sleeptrain.data.config import is_remote
from sleeptrain.data.manifest import WINDOWS, Manifest
from sleeptrain.data.sources import DataMissing, open_sources
from sleeptrain.errors import UserError
from sleeptrain.model.token_mask import MaskName
from sleeptrain.program import Window
from sleeptrain.recipe.completion import complete
from sleeptrain.recipe.recipe import Recipe
from sleeptrain.recipe.task_files import task_file, task_names, with_build_command

MASKS: Mapping[str, MaskName | None] = {"text": "valid", "rule110": None}
"""The masks that passes over the rows of a task have. Text is packed, and rings fill their rows; the rows of other tasks end in padding."""


@dataclass(frozen=True)
class DataLayout:
    """Manifest and windows of a recipe's data."""

    manifest: Manifest
    mask: MaskName | None
    """The tensor of `TokenMask` that passes have, since rows may hold padding or several documents; None where they have none."""
    assumed: str | None
    """What is assumed because there is no data yet; None where there is."""
    sizes: tuple[SourceSize, ...] = ()
    """Rows and real tokens of every source; empty where there is no data yet."""

    @classmethod
    def of(cls, manifest: Manifest, sizes: tuple[SourceSize, ...]) -> DataLayout:
        """Of data that exists."""
        full = sum(size.tokens for size in sizes) == sum(size.rows for size in sizes) * manifest.length
        return cls(manifest, "valid" if manifest.block is not None else None if full else "prefix", None, sizes)

    @property
    def windows(self) -> tuple[Window, ...]:
        """The windows of every sample, in order and without gaps."""
        return self.manifest.windows


def resolve_data(resolved: Resolved[Recipe], windows: int | None = None) -> tuple[Resolved[Recipe], DataLayout]:
    """A complete recipe and the layout of its data, or of the task that its data folder is named after if there is no data.

    `windows`: how many windows of text a sample would have. Raises UserError where the data is damaged or does not fit the
    recipe, and where neither data nor task say what the windows are, with the command that builds the data.
    """
    sources = resolved.value.data.sources
    missing = [source.path for source in sources if not is_remote(source.path) and not Path(source.path).exists()]
    try:
        layout = _of_task(resolved.value, missing[0], windows) if missing else _of_data(resolved.value)
    except UserError as error:
        raise UserError([f"{resolved.at('data.sources')}: {line}" for line in with_build_command(error)]) from None
    return complete(resolved, layout.manifest), layout


def _of_data(recipe: Recipe) -> DataLayout:
    sources = open_sources(recipe.data, recipe.data.split, recipe.sleep.window)
    return DataLayout.of(sources.manifest, sources.sizes)


def _of_task(recipe: Recipe, path: str, count: int | None) -> DataLayout:
    name = Path(path).name
    if name not in task_names():
        raise DataMissing(
            Path(path), f"does not exist, and no task is called {name!r} that would say what its windows are; build it"
        )
    file = task_file(name)
    given: dict[str, Any] = file.get("parameters") or {}
    if file["task"] == "text":
        length = recipe.sleep.window
        count = count or (WINDOWS if recipe.data.row is None else max(1, recipe.data.row // length))
        windows = tuple(Window(i * length, (i + 1) * length, True) for i in range(count))
        vocabulary = open_tokenizer(given.get("tokenizer"), given.get("vocab")).vocabulary
    else:
        task = make(file["task"], given)
        windows = tuple(Window(w.start, w.stop, w.targets) for w in task.windows())
        vocabulary = task.vocabulary()
    ids = recipe.model.vocab or vocabulary.size
    plural = "s" if len(windows) > 1 else ""
    assumed = (
        f"{path} is not there yet; assumed, as task {name!r} builds it: {len(windows)} window{plural} of "
        f"{max(w.stop - w.start for w in windows)} tokens, {ids:,} token ids"
        + (" (bytes; model.vocab=N for a tokenizer)" if vocabulary.kind == "bytes" and not recipe.model.vocab else "")
    )
    return DataLayout(_manifest(file["task"], windows, vocabulary), MASKS.get(file["task"], "prefix"), assumed)


def _manifest(task: str, windows: tuple[Window, ...], vocabulary: Vocabulary) -> Manifest:
    """The manifest that data of this task would have, without counts."""
    return Manifest(
        task=task, vocab=vocabulary.size, pad=vocabulary.pad, query=vocabulary.query, length=windows[-1].stop,
        windows=windows, tokenizer={"kind": vocabulary.kind}, label=None, label_values=(), labels={}, baselines={}, splits={},
        hash="", body={},
    )  # fmt: skip
