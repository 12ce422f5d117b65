"""What `sleeptrain data build` and `sleeptrain data inspect` do: make shards from a task file, and look at them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sleep_data import shards
from sleep_data.tasks import TASKS, make, nearest
from sleeptrain.config import UserError
from sleeptrain.config.files import configs_root
from sleeptrain.data.config import Data, Source
from sleeptrain.data.evaluation import Evaluation
from sleeptrain.data.manifest import Manifest
from sleeptrain.data.sources import local_manifest

SETTINGS = ("train", "test", "seed")
"""What a task file says beside the task's own parameters: samples of each split (null: all there are) and the seed."""


def build(
    task: str,
    out: str | Path,
    parameters: Mapping[str, Any] | None = None,
    *,
    progress: shards.Progress | None = None,
) -> Manifest:
    """Write the shards of a task to the folder `out` and return their manifest.

    task            a file in configs/task (`rule110-tiny`), the path of such a file, or the bare name of a task
    parameters      override it: parameters of the task, and `train`, `test`, `seed`
    progress        called with the split, the samples written so far, and their number or None

    A folder that already holds exactly this is left alone. UserError says what is wrong with the request.
    """
    recipe = task_file(task)
    settings = {"train": 10_000, "test": 1_000, "seed": 0} | {name: recipe[name] for name in SETTINGS if name in recipe}
    values = dict(recipe.get("parameters") or {})
    for name, value in (parameters or {}).items():
        (settings if name in SETTINGS else values)[name] = value
    for name, value in settings.items():
        allowed = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        if not allowed and not (value is None and name != "seed"):
            raise UserError(f"{name}={value!r}: it must be a whole number of at least 0")
    try:
        samples = {"train": settings["train"], "test": settings["test"]}
        body = shards.build(make(recipe["task"], values), Path(out), samples, settings["seed"], progress=progress)
    except ValueError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"{task} cannot be built in {out}: {error}") from error
    return Manifest.from_json(body)


def recipes() -> list[str]:
    """Names of the task files in configs/task."""
    return sorted(path.stem for path in (configs_root() / "task").glob("*.yaml"))


def task_file(task: str) -> dict[str, Any]:
    """The content of a task file, by path or name; for the bare name of a task, one that keeps its defaults. UserError if it is none."""
    choices = [Path(task), configs_root() / "task" / f"{task}.yaml"]
    path = next((path for path in choices if path.is_file()), None)
    if path is None:
        if task in TASKS:
            return {"task": task}
        known = sorted({*recipes(), *TASKS})
        raise UserError(f"there is no task {task!r}{nearest(task, known)}; there are {', '.join(known)}")
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    allowed = ("task", "parameters", *SETTINGS)
    if not isinstance(content, dict) or "task" not in content:
        raise UserError(f"{path} is no task file: it has the keys {', '.join(allowed)}")
    for key in content:
        if key not in allowed:
            raise UserError(f"{path}: {key!r} is not known{nearest(key, allowed)}; the keys are {', '.join(allowed)}")
    return content


@dataclass(frozen=True)
class Inspection:
    """What is in a folder of shards: its manifest, and some samples as text."""

    path: str
    manifest: Manifest
    samples: dict[str, list[str]]
    """For each split its first samples, windows separated by '|', scored positions as `token>target`."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"path": self.path, "manifest": self.manifest.body, "samples": self.samples}

    def text(self) -> str:
        """For the terminal."""
        m = self.manifest
        body = m.body
        windows = ", ".join(f"{w.start}-{w.stop - 1}{' (scored)' if w.targets else ''}" for w in m.windows)
        given = "  ".join(f"{name}={value}" for name, value in body["parameters"].items())
        lines = [f"{self.path}: {m.task}, seed {body['seed']}", f"  parameters  {given}"]
        lines += [f"  tokens      {m.length} a sample, {m.vocab} ids ({m.tokenizer['kind']}), padding {m.pad}"]
        lines += [f"  windows     {windows}"]
        for split, entry in sorted(m.splits.items(), reverse=True):
            lines += [
                f"  {split:<10}  {entry['samples']:,} samples, {entry['tokens']:,} tokens, {entry['targets']:,} scored"
            ]
        for key, table in m.baselines.items():
            shown = "  ".join(f"{name} {value:.4g}" for name, value in table.items())
            lines += [f"  guessing    {f'{m.label} = {key}: ' if m.label else ''}{shown}"]
        for split, rows in self.samples.items():
            lines += [f"  {split} {i}: {row}" for i, row in enumerate(rows)]
        return "\n".join(lines)


def inspect(path: str | Path, samples: int = 2) -> Inspection:
    """Look into a local folder of shards. UserError if it is none."""
    manifest = Manifest.from_json(local_manifest(Path(path)))
    shown: dict[str, list[str]] = {}
    for split in sorted(manifest.splits, reverse=True) if samples else ():
        rows = Evaluation(Data([Source(str(path))]), micro=1, split=split, samples=samples)
        shown[split] = [render(manifest, row.tokens[0].numpy(), row.targets[0].numpy()) for row in rows]
    return Inspection(str(path), manifest, shown)


def render(manifest: Manifest, tokens: np.ndarray, targets: np.ndarray) -> str:
    """One sample as text: windows separated by '|', `token>target` where something is scored, unless everything is."""
    shown = []
    for window in manifest.windows:
        part = slice(window.start, window.stop)
        names = [symbol(manifest, int(token)) for token in tokens[part]]
        if not manifest.targets:
            answers = [f">{symbol(manifest, int(target))}" if target >= 0 else "" for target in targets[part]]
            names = [name + answer for name, answer in zip(names, answers, strict=True)]
        shown.append(_join(names, symbol(manifest, manifest.pad)))
    return " | ".join(shown)


def _join(names: list[str], pad: str) -> str:
    """Names in a row: single characters next to each other without spaces, runs of padding counted."""
    text = ""
    before = ""
    for name, run in itertools.groupby(names):
        times = len(list(run))
        pieces = [f"{pad}*{times}"] if name == pad and times > 1 else [name] * times
        for piece in pieces:
            text += (" " if text and not len(before) == len(piece) == 1 else "") + piece
            before = piece
    return text


def symbol(manifest: Manifest, token: int) -> str:
    """How a token is shown."""
    symbols = manifest.tokenizer["vocabulary"]
    return symbols[token] if symbols else f"#{token}"
