"""Imports a Hugging Face folder of a published model as a run folder that a recipe starts from (`init_from`).

Nothing of the folder is executed: config.json, tokenizer.json and safetensors files are read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sleep_data.staging import publish, staging
from sleeptrain.checkpoint import write_weights
from sleeptrain.convert import jet_nemotron, ouro, qwen3_5_folder
from sleeptrain.convert.folder_reading import FolderReading
from sleeptrain.convert.licences import licence_files
from sleeptrain.convert.qwen3_5 import MappedTensor
from sleeptrain.convert.tensor_files import TensorFiles
from sleeptrain.errors import UserError
from sleeptrain.model.config import Model
from sleeptrain.recipe.load_trained import parameter_shapes
from sleeptrain.recipe.recipe import load_recipe
from sleeptrain.run.folder import CHECKPOINTS, CONFIG, write_run_folder

READERS: dict[str, Callable[[Path, dict[str, Any], str | None], FolderReading]] = {
    "qwen3_5_text": qwen3_5_folder.read_folder,
    "qwen3_5": qwen3_5_folder.read_folder,
    "jet_nemotron": jet_nemotron.read_folder,
    "ouro": ouro.read_folder,
}
"""The function that reads what a folder says, by `model_type` of its config.json."""
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
    added: tuple[str, ...]
    """What the model has beside them, in a line each."""
    notices: Mapping[str, str]
    """What the licence of the weights demands, by the name of the file in the run folder that says so."""
    licences: tuple[str, ...]
    """Licence files of the folder, which the run folder has, too."""


def import_hf(folder: Path, out: Path, layers: str | None = None) -> Imported:
    """Write the model in `folder` as the run folder `out` with a checkpoint of step 0, which is renamed to its name when complete.

    An export of sleeptrain gives back recipe, manifest and weights of the run, bit for bit where it was fp32. Another folder gives a
    recipe with default values beside the model, and a manifest of text by its tokenizer. `layers` says where Gated DeltaNet blocks are
    grafted into a model of attention alone (`ouro.read_model`). Raises UserError, and leaves nothing behind, where `out` exists, where
    the folder is incomplete or damaged, and for what sleeptrain cannot express.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f"--out {out} exists; remove it, or name another folder")
    if not folder.is_dir():
        raise UserError(
            f"{folder} {'is a file' if folder.exists() else 'does not exist'}; name a folder with config.json"
        )
    reading = _read(folder, layers)
    files, licences = TensorFiles(folder), licence_files(folder)
    names, dropped = _accounted(files, reading)
    place = {ours: (name, i) for name, tensor in names.items() for i, ours in enumerate(tensor.parameters)}
    shapes = parameter_shapes(reading.resolved.value)
    assert sorted([*place, *reading.made]) == sorted(shapes), "every parameter has exactly one value"

    def read(parameter: str) -> Tensor:
        if parameter in reading.made:
            return reading.made[parameter]()
        name, i = place[parameter]
        return _part(files, name, names[name], i)

    try:
        with staging(out, keep=False) as staged:
            write_run_folder(staged, reading.resolved.to_yaml(), reading.manifest, reading.tokenizer)
            _check_recipe(staged / CONFIG, folder / "config.json")
            for name, text in {**licences, **reading.notices}.items():
                (staged / name).write_text(text)
            write_weights(staged / CHECKPOINTS, 0, shapes, read)
            publish(staged, out)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}: {error.filename})") from None
    model = reading.resolved.value.model
    return Imported(model, len(names), dropped, reading.added, reading.notices, tuple(licences))


def _read(folder: Path, layers: str | None) -> FolderReading:
    """What config.json and the other files say. Raises UserError for models of other kinds."""
    config = _read_json(folder / "config.json")
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in READERS:
        raise UserError(
            f"{folder / 'config.json'}: model_type {kind!r} cannot be imported; possible are {', '.join(READERS)}"
        )
    return READERS[kind](folder, config, layers)


def _check_recipe(written: Path, source: Path) -> None:
    """Raise UserError, naming the file that was imported, where the values of a recipe do not fit together."""
    try:
        load_recipe(str(written))
    except UserError as error:
        raise UserError([re.sub(r"\(\S*\.yaml:\d+\)", f"({source})", line) for line in error.errors]) from None


def _accounted(files: TensorFiles, reading: FolderReading) -> tuple[dict[str, MappedTensor], dict[str, str]]:
    """The tensors by their names in the files, and those that are dropped with the reason. Every tensor is one or the other.

    Raises UserError that lists what is missing, unexpected, or of a wrong shape or dtype.
    """
    wanted = {tensor.name: tensor for tensor in reading.mapped}
    used, dropped, errors, seen = dict[str, MappedTensor](), dict[str, str](), list[str](), set[str]()
    for name in files.names():
        plain = name.replace(reading.prefix, "model.", 1)
        reason = next((why for pattern, why in reading.dropped.items() if re.fullmatch(pattern, plain)), None)
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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); name a complete Hugging Face folder") from None
    if not isinstance(body, dict):
        raise UserError(f"{path} is no JSON object; name a complete Hugging Face folder")
    return body
