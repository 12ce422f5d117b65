"""Exports a checkpoint as a Hugging Face folder: the plain model for every engine that reads Qwen3.5, with a class that sleeps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from sleep_data.staging import publish, staging
from sleep_data.tokenize import TOKENIZER
from sleeptrain.checkpoint import WeightReader
from sleeptrain.checkpoint.format import TensorLayout
from sleeptrain.convert.hf_config import config_json
from sleeptrain.convert.licences import licence_files
from sleeptrain.convert.model_card import ModelCard
from sleeptrain.convert.qwen3_5 import MappedTensor, mapped_tensors, obstacles
from sleeptrain.convert.shards import INDEX, folder_sink, index_json, plan_shards, write_shards
from sleeptrain.convert.tensor_files import TensorFiles
from sleeptrain.convert.tokenizer_files import token_ids, tokenizer_files
from sleeptrain.errors import UserError
from sleeptrain.inference.text import Codec
from sleeptrain.recipe.load_trained import RunFiles, check_fit, open_run_files, parameter_shapes
from sleeptrain.run.folder import CONFIG, MANIFEST

ORIGIN = "sleeptrain"
"""The subfolder with recipe, manifest and tokenizer of the run, from which an import restores it."""
FEEDBACK = "feedback.weight"
"""The parameter of gated feedback, which is in config.json: it is read in sleep only, and no engine has a tensor for it."""
MODELING = "modeling_sleep.py"


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    files: dict[str, int]
    """Bytes of every file, by its path in the folder."""
    tensors: int
    parameters: int


class WeightSource:
    """The tensors of an export, each made of a checkpoint's parameters when it is asked for."""

    def __init__(self, reader: WeightReader, mapped: list[MappedTensor], dtype: torch.dtype) -> None:
        self._reader, self._mapped, self._dtype = reader, {tensor.name: tensor for tensor in mapped}, dtype

    def layouts(self) -> dict[str, TensorLayout]:
        """Dtype and shape of every tensor, in order."""
        return {name: TensorLayout(self._stored(tensor), tensor.shape) for name, tensor in self._mapped.items()}

    def make(self, name: str) -> Tensor:
        """A tensor as it is stored."""
        mapped = self._mapped[name]
        return mapped.join([self._reader.read(ours) for ours in mapped.parameters]).to(self._stored(mapped))

    def _stored(self, tensor: MappedTensor) -> torch.dtype:
        return torch.float32 if tensor.float32 else self._dtype


def export_hf(path: Path, out: Path, dtype: torch.dtype, shard_size: int) -> Exported:
    """Write the run or checkpoint at `path` as a Hugging Face folder `out`, which is renamed to its name when it is complete.

    Needs no GPU, and memory for the largest tensor. The files are read again and compared. Raises UserError, and leaves nothing
    behind, where `out` exists, where the checkpoint cannot be read, and for everything of the model that the format cannot express.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f"--out {out} exists; remove it, or name another folder")
    opened = open_run_files(path)
    recipe = opened.resolved.value
    if problems := list(obstacles(recipe.model, recipe.sleep)):
        told = [f"{opened.resolved.at(field)} cannot be exported to qwen3_5_text: {why}" for field, why in problems]
        raise UserError(told)
    reader, mapped = WeightReader(opened.checkpoint), mapped_tensors(recipe.model)
    check_fit(reader.shapes, parameter_shapes(recipe), opened.checkpoint, str(opened.run / CONFIG))
    used = [name for tensor in mapped for name in tensor.parameters] + [FEEDBACK] * recipe.sleep.gated
    assert sorted(used) == sorted(reader.shapes), "every parameter is in exactly one tensor"
    source = WeightSource(reader, mapped, dtype)
    shards = plan_shards(source.layouts(), shard_size)
    try:
        with staging(out, keep=False) as folder:
            for name, text in _texts(opened, reader, dtype).items():
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text(text, encoding="utf-8")
            write_shards(shards, source.make, folder_sink(folder))
            if len(shards) > 1:
                (folder / INDEX).write_text(index_json(shards))
            check_written(folder, source)
            files = {str(f.relative_to(folder)): f.stat().st_size for f in sorted(folder.rglob("*")) if f.is_file()}
            publish(folder, out)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}: {error.filename})") from None
    return Exported(files, len(mapped), sum(prod(shape) for shape in reader.shapes.values()))


def check_written(folder: Path, source: WeightSource) -> None:
    """Read all tensors of a folder again. Raises UserError where one is not what was to be written."""
    written = TensorFiles(folder)
    if odd := sorted(set(written.names()) ^ set(source.layouts())):
        raise UserError(f"{folder}: tensor {odd[0]} was not written as planned; export again")
    for name in written.names():
        if not torch.equal(written.read(name), source.make(name)):
            raise UserError(f"{written.where(name)} is not what was written: the disk may be failing; export again")


def _texts(opened: RunFiles, reader: WeightReader, dtype: torch.dtype) -> dict[str, str]:
    """All files that hold no tensors."""
    recipe, manifest, run = opened.resolved.value, opened.manifest, opened.run
    ids = token_ids(manifest)
    feedback = reader.read(FEEDBACK).tolist() if recipe.sleep.gated else []
    name = str(dtype).removeprefix("torch.")
    config = config_json(
        recipe.model, recipe.sleep, dtype=name, length=manifest.length, tokens=ids, feedback=feedback
    )  # fmt: skip
    generation = {key: value for key, value in ids.items() if value is not None} | {"do_sample": False}
    original = _tokenizer(opened)
    tokenizer = tokenizer_files(manifest, original)
    licences = licence_files(run)
    count = sum(prod(shape) for shape in reader.shapes.values())
    card = ModelCard(opened, count, name, bool(tokenizer), tuple(licences))
    texts = {
        "config.json": json.dumps(config, indent=1), "generation_config.json": json.dumps(generation, indent=1),
        MODELING: Path(__file__).with_name(MODELING).read_text(), "README.md": card.text(), **tokenizer, **licences,
    }  # fmt: skip
    return texts | dict(_origin(run, original))


def _tokenizer(opened: RunFiles) -> Path:
    """The tokenizer.json that encoded the data, where one did. Raises UserError where it is missing or was changed."""
    copy = opened.run / TOKENIZER
    if opened.manifest.tokenizer["kind"] == "file":
        Codec(opened.manifest, opened.run)
        return copy if copy.exists() else Path(opened.manifest.body["parameters"]["tokenizer"])
    return copy


def _origin(run: Path, tokenizer: Path) -> Iterator[tuple[str, str]]:
    """Recipe, manifest of the data, and tokenizer as they are in the run folder."""
    for path in (run / CONFIG, run / MANIFEST, tokenizer):
        if path.is_file():
            yield f"{ORIGIN}/{path.name}", path.read_text(encoding="utf-8")
