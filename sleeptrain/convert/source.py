"""What an export reads: a run or checkpoint whose model the target format can express, and its tensors one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from sleep_data.tokenize import TOKENIZER
from sleeptrain.checkpoint import WeightReader
from sleeptrain.checkpoint.format import TensorLayout
from sleeptrain.convert.qwen3_5 import MappedTensor, mapped_tensors, obstacles
from sleeptrain.errors import UserError
from sleeptrain.inference.text import Codec
from sleeptrain.model.config import Model
from sleeptrain.program import Sleep
from sleeptrain.recipe.load_trained import RunFiles, check_fit, open_run_files, parameter_shapes
from sleeptrain.run.folder import CONFIG

FEEDBACK = "feedback.weight"
"""The parameter of gated feedback, which is in the section `sleep` of an export: it is read in sleep only, and no engine has a tensor for it."""


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


@dataclass(frozen=True)
class ExportSource:
    """A checkpoint that can be exported."""

    opened: RunFiles
    reader: WeightReader
    mapped: list[MappedTensor]
    """The tensors of `qwen3_5_text`; every parameter but that of gated feedback is in exactly one."""

    @property
    def model(self) -> Model:
        """The section `model:` of its recipe."""
        return self.opened.resolved.value.model

    @property
    def sleep(self) -> Sleep:
        """The section `sleep:` of its recipe."""
        return self.opened.resolved.value.sleep

    @property
    def parameters(self) -> int:
        """The number of weights."""
        return sum(prod(shape) for shape in self.reader.shapes.values())

    def weights(self, dtype: torch.dtype) -> WeightSource:
        """Its tensors; matrices are stored in `dtype`."""
        return WeightSource(self.reader, self.mapped, dtype)

    def feedback(self) -> list[float]:
        """The weight of gated feedback, one number a channel; empty for other feedback."""
        return self.reader.read(FEEDBACK).tolist() if self.sleep.gated else []

    def tokenizer(self) -> Path:
        """The tokenizer.json that encoded the data, where one did. Raises UserError where it is missing or was changed."""
        copy, manifest = self.opened.run / TOKENIZER, self.opened.manifest
        if manifest.tokenizer["kind"] == "file":
            Codec(manifest, self.opened.run)
            return copy if copy.exists() else Path(manifest.body["parameters"]["tokenizer"])
        return copy


def open_source(
    path: Path, target: str, limits: Callable[[Model], Iterator[tuple[str, str]]] | None = None
) -> ExportSource:
    """The run or checkpoint at `path`.

    `limits` gives what of a model `target` cannot express beside the obstacles of Qwen3.5: the field of the recipe, and why.
    Raises UserError for each of these, and where the checkpoint cannot be read.
    """
    opened = open_run_files(path)
    recipe = opened.resolved.value
    problems = [*obstacles(recipe.model, recipe.sleep), *(limits(recipe.model) if limits else ())]
    if problems:
        raise UserError(
            [f"{opened.resolved.at(field)} cannot be exported to {target}: {why}" for field, why in problems]
        )
    reader, mapped = WeightReader(opened.checkpoint), mapped_tensors(recipe.model)
    check_fit(reader.shapes, parameter_shapes(recipe), opened.checkpoint, str(opened.run / CONFIG))
    used = [name for tensor in mapped for name in tensor.parameters] + [FEEDBACK] * recipe.sleep.gated
    assert sorted(used) == sorted(reader.shapes), "every parameter is in exactly one tensor"
    return ExportSource(opened, reader, mapped)
