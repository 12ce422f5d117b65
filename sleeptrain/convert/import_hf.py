"""Imports a Hugging Face folder of a published model as a run folder that a recipe starts from (`init_from`).

Nothing of the folder is executed: config.json, tokenizer.json and safetensors files are read. What differs between kinds of
models is in `published.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sleep_data import manifest as manifests
from sleep_data.staging import publish, staging
from sleep_data.tokenize import TOKENIZER, FileTokenizer
from sleeptrain.checkpoint import write_weights
from sleeptrain.config import Resolved
from sleeptrain.convert.export import ORIGIN
from sleeptrain.convert.hf_config import read_sleep, same_shape
from sleeptrain.convert.licences import licence_files
from sleeptrain.convert.published import PublishedModel, published_model
from sleeptrain.convert.qwen3_5 import MappedTensor
from sleeptrain.convert.source import FEEDBACK
from sleeptrain.convert.tensor_files import TensorFiles
from sleeptrain.data.config import Data, Source
from sleeptrain.data.manifest import WINDOWS
from sleeptrain.errors import UserError
from sleeptrain.model.config import Model
from sleeptrain.recipe.load_trained import parameter_shapes
from sleeptrain.recipe.recipe import Recipe, load_recipe
from sleeptrain.run.folder import CHECKPOINTS, CONFIG, write_run_folder
from sleeptrain.train.config import Train

TIED = "it is the embedding (tie_word_embeddings)"
DTYPES = ("F32", "BF16", "F16")


@dataclass(frozen=True)
class Imported:
    """What an import read."""

    model: Model
    tensors: int
    """The number of tensors that are used, each exactly once."""
    dropped: dict[str, str]
    """Tensors that were left out, and why."""
    notices: dict[str, str]
    """What the licence of the weights demands, by the name of the file in the run folder that says so."""
    licences: tuple[str, ...]
    """Licence files of the folder, which the run folder has, too."""


def import_hf(folder: Path, out: Path) -> Imported:
    """Write the model in `folder` as the run folder `out` with a checkpoint of step 0, which is renamed to its name when complete.

    An export of sleeptrain gives back recipe, manifest and weights of the run, bit for bit where it was fp32. Another folder gives a
    recipe with default values beside the model, and a manifest of text by its tokenizer. Raises UserError, and leaves nothing
    behind, where `out` exists, where the folder is incomplete or damaged, and for what sleeptrain cannot express.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f"--out {out} exists; remove it, or name another folder")
    if not folder.is_dir():
        raise UserError(
            f"{folder} {'is a file' if folder.exists() else 'does not exist'}; name a folder with config.json"
        )
    published = published_model(_read_json(folder / "config.json"), str(folder / "config.json"))
    config, model = published.config, published.model
    resolved, manifest, tokenizer = _origin(folder, model) or _described(folder, config, model)
    model = resolved.value.model
    files, licences = TensorFiles(folder), licence_files(folder)
    names, dropped = _accounted(files, replace(published, model=model))
    place = {ours: (name, i) for name, tensor in names.items() for i, ours in enumerate(tensor.parameters)}
    feedback = _feedback(config, model, folder) if resolved.value.sleep.gated else torch.empty(0)
    shapes = parameter_shapes(resolved.value)
    assert {*place, FEEDBACK} == {*shapes, FEEDBACK}

    def read(parameter: str) -> Tensor:
        if parameter == FEEDBACK:
            return feedback
        name, i = place[parameter]
        return _part(files, name, names[name], i)

    try:
        with staging(out, keep=False) as staged:
            write_run_folder(staged, resolved.to_yaml(), manifest, tokenizer)
            _check_recipe(staged / CONFIG, folder / "config.json")
            for name, text in (licences | published.notices).items():
                (staged / name).write_text(text)
            write_weights(staged / CHECKPOINTS, 0, shapes, read)
            publish(staged, out)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}: {error.filename})") from None
    return Imported(model, len(names), dropped, published.notices, tuple(licences))


def _origin(folder: Path, model: Model) -> tuple[Resolved[Recipe], dict[str, Any], Path] | None:
    """Recipe, manifest and tokenizer that an export of sleeptrain has of its run; None where there are none."""
    origin = folder / ORIGIN
    if not (origin / CONFIG).exists():
        return None
    resolved = load_recipe(str(origin / CONFIG), ["model.residual_scale=1.0", "init_from=null"])
    resolved = replace(resolved, value=replace(resolved.value, run_dir=None))
    if same_shape(resolved.value.model) != same_shape(model):
        raise UserError(
            f"{origin / CONFIG} describes another model than {folder / 'config.json'}; remove {origin} to import without it"
        )
    try:
        return resolved, manifests.read(origin), origin / TOKENIZER
    except ValueError as error:
        raise UserError(f"{error}; or remove {origin} to import without it") from None


def _described(folder: Path, config: Mapping[str, Any], model: Model) -> tuple[Resolved[Recipe], dict[str, Any], Path]:
    """A recipe for the model of another program, and a manifest of text that its tokenizer encodes."""
    path = folder / TOKENIZER
    try:
        vocabulary = FileTokenizer(str(path)).vocabulary
    except ValueError as error:
        raise UserError(str(error)) from None
    assert model.vocab is not None
    if vocabulary.size > model.vocab:
        raise UserError(
            f"{path} has {vocabulary.size - 2:,} ids, and the model has {model.vocab:,}; sleeptrain adds two, for the start of a document "
            f"and for padding. An export of sleeptrain has them already, and is imported with its subfolder {ORIGIN}"
        )
    sleep = read_sleep(config.get("sleep"), len(model.pattern), str(folder / "config.json"))
    recipe = Recipe(model, sleep, Data([Source("runs/data/text")]), train=Train(steps=1000))
    token = {"kind": "file", "vocabulary": [], "size": vocabulary.size, "hash": vocabulary.hash}
    body = {
        "format": manifests.FORMAT, "task": "text", "version": 0, "parameters": {"tokenizer": str(path.resolve())}, "seed": 0,
        "inputs": None, "samples": {}, "tokenizer": token, "vocab": vocabulary.size, "pad": vocabulary.pad, "query": None,
        "block": WINDOWS * sleep.window, "length": None, "corpus": None, "windows": [], "columns": {}, "label": None,
        "labels": {}, "baselines": {}, "splits": {},
    }  # fmt: skip
    return Resolved(recipe, {}), body | {"hash": manifests.digest(body)}, path


def _check_recipe(written: Path, source: Path) -> None:
    """Raise UserError, naming the file that was imported, where the values of a recipe do not fit together."""
    try:
        load_recipe(str(written))
    except UserError as error:
        raise UserError([re.sub(r"\(\S*\.yaml:\d+\)", f"({source})", line) for line in error.errors]) from None


def _accounted(files: TensorFiles, published: PublishedModel) -> tuple[dict[str, MappedTensor], dict[str, str]]:
    """The tensors by their names in the files, and those that are dropped with the reason. Every tensor is one or the other.

    Raises UserError that lists what is missing, unexpected, or of a wrong shape or dtype.
    """
    wanted = {tensor.name: tensor for tensor in published.mapped_tensors(published.model)}
    used, dropped, errors, seen = dict[str, MappedTensor](), dict[str, str](), list[str](), set[str]()
    for name in files.names():
        plain = name.replace(published.prefix, "model.", 1)
        reason = next((why for pattern, why in published.dropped.items() if re.fullmatch(pattern, plain)), None)
        if plain not in wanted and (reason or plain == "lm_head.weight"):
            dropped[name] = reason or TIED
        elif plain not in wanted or plain in seen:
            errors.append(f"{files.where(name)} is a tensor that the model of config.json has not")
        elif (shape := files.shape(name)) != wanted[plain].shape:
            errors.append(
                f"{files.where(name)} has the shape {list(shape)}, and config.json gives it {list(wanted[plain].shape)}"
            )
        elif (dtype := files.dtype(name)) not in DTYPES:
            errors.append(f"{files.where(name)} has dtype {dtype}; import a model of {', '.join(DTYPES)}")
        else:
            used[name] = wanted[plain]
        seen.add(plain)
    errors += [f"tensor {name} is missing; the folder is incomplete" for name in wanted if name not in seen]
    if errors:
        raise UserError(errors[:20] + ([f"... and {len(errors) - 20} more"] if len(errors) > 20 else []))
    return used, dropped


def _part(files: TensorFiles, name: str, tensor: MappedTensor, index: int) -> Tensor:
    try:
        return tensor.split(files.read(name).float())[index]
    except ValueError as error:
        raise UserError(f"{files.where(name)}: {error}") from None


def _feedback(config: Mapping[str, Any], model: Model, folder: Path) -> Tensor:
    """The weight [width] of gated feedback, which config.json has."""
    weight = torch.tensor((config.get("sleep") or {}).get("feedback_weight", []))
    if tuple(weight.shape) != (model.width,):
        raise UserError(
            f"{folder / 'config.json'}: sleep.feedback_weight must have {model.width} numbers, for gated feedback"
        )
    return weight


def _read_json(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); name a complete Hugging Face folder") from None
    if not isinstance(body, dict):
        raise UserError(f"{path} is no JSON object; name a complete Hugging Face folder")
    return body
