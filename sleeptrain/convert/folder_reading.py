"""What a module for one kind of model makes of a Hugging Face folder before its tensors are read: recipe, manifest, mapping."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from sleep_data import manifest as manifests
from sleep_data.task import Vocabulary
from sleep_data.tokenize import TOKENIZER, FileTokenizer
from sleeptrain.config import Resolved
from sleeptrain.convert.export import ORIGIN
from sleeptrain.convert.qwen3_5 import MappedTensor
from sleeptrain.data.config import Data, Source
from sleeptrain.data.manifest import WINDOWS
from sleeptrain.errors import UserError
from sleeptrain.model.config import Model
from sleeptrain.program import Sleep
from sleeptrain.recipe.recipe import Recipe
from sleeptrain.train.config import Train

Described = tuple[Resolved[Recipe], dict[str, Any], Path]
"""Recipe, manifest of the data, and tokenizer of a run."""


@dataclass(frozen=True)
class FolderReading:
    """What a folder says about a run, its tensors aside."""

    resolved: Resolved[Recipe]
    manifest: dict[str, Any]
    tokenizer: Path
    mapped: list[MappedTensor]
    """The tensors that are used."""
    dropped: Mapping[str, str]
    """Patterns of the names of tensors that are left out, and why."""
    made: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)
    """The values of parameters that no tensor holds."""
    added: tuple[str, ...] = ()
    """What the model has beside the tensors, in a line each."""
    prefix: str = "model."
    """What the names of the text model's tensors begin with in place of `model.`."""
    notices: Mapping[str, str] = field(default_factory=dict)
    """Files about the licence of the weights that go with everything that is made from them, by name (`licences.PATTERNS`)."""


def text_vocabulary(folder: Path) -> Vocabulary:
    """The ids of the folder's tokenizer, and the two that sleeptrain adds."""
    try:
        return FileTokenizer(str(folder / TOKENIZER)).vocabulary
    except ValueError as error:
        raise UserError(str(error)) from None


def described(folder: Path, model: Model, sleep: Sleep) -> Described:
    """A recipe for the model of another program, and a manifest of text that its tokenizer encodes.

    Raises UserError where the model has too few ids for the tokenizer.
    """
    path, vocabulary = folder / TOKENIZER, text_vocabulary(folder)
    if model.vocab is not None and vocabulary.size > model.vocab:
        raise UserError(
            f"{path} has {vocabulary.size - 2:,} ids, and the model has {model.vocab:,}; sleeptrain adds two, for the start of a document "
            f"and for padding. An export of sleeptrain has them already, and is imported with its subfolder {ORIGIN}"
        )
    recipe = Recipe(model, sleep, Data([Source("runs/data/text")]), train=Train(steps=1000))
    token = {"kind": "file", "vocabulary": [], "size": vocabulary.size, "hash": vocabulary.hash}
    body = {
        "format": manifests.FORMAT, "task": "text", "version": 0, "parameters": {"tokenizer": str(path.resolve())}, "seed": 0,
        "inputs": None, "samples": {}, "tokenizer": token, "vocab": vocabulary.size, "pad": vocabulary.pad, "query": None,
        "block": WINDOWS * sleep.window, "length": None, "corpus": None, "windows": [], "columns": {}, "label": None,
        "labels": {}, "baselines": {}, "splits": {},
    }  # fmt: skip
    return Resolved(recipe, {}), body | {"hash": manifests.digest(body)}, path


def no_grafted_blocks(layers: str | None, source: str) -> None:
    """Raise UserError where `--layers` is given for a model to which no blocks are added."""
    if layers is not None:
        raise UserError(f"--layers {layers}: {source} says which blocks this model has; the option is for Ouro")
