"""Exports a checkpoint as a GGUF file of architecture `qwen35`, which llama.cpp and the programs built on it read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sleep_data.staging import staging
from sleeptrain.convert.gguf_tensors import GgufTensor, gguf_tensors
from sleeptrain.convert.gguf_tokenizer import tokenizer_keys
from sleeptrain.convert.hf_config import POSITIONS, full_attention_interval, sleep_json
from sleeptrain.convert.licences import licence_files
from sleeptrain.convert.quantise_gguf import QUANTISED, quantise
from sleeptrain.convert.source import Exported, ExportSource, WeightSource, open_source
from sleeptrain.errors import UserError
from sleeptrain.model.config import Model, rotary_dims

ARCHITECTURE = "qwen35"
TYPES = {"f32": (torch.float32, 0), "f16": (torch.float16, 1), "bf16": (torch.bfloat16, 32)}
"""Dtype of matrices, and its number in llama.cpp's `general.file_type`."""


class GgufSource:
    """The tensors of a GGUF file, each made when it is asked for."""

    def __init__(self, weights: WeightSource, tensors: list[GgufTensor], dtype: torch.dtype) -> None:
        self.tensors, self._weights, self._dtype = tensors, weights, dtype

    def stored(self, tensor: GgufTensor) -> torch.dtype:
        """The dtype of a tensor in the file."""
        return torch.float32 if tensor.float32 else self._dtype

    def make(self, tensor: GgufTensor) -> np.ndarray[Any, Any]:
        """A tensor as it is stored; bfloat16 as 16-bit integers."""
        values: Tensor = tensor.make(self._weights.make(tensor.source)).to(self.stored(tensor))
        return (values.view(torch.int16) if values.dtype == torch.bfloat16 else values).numpy()


def export_gguf(path: Path, out: Path, kind: str) -> Exported:
    """Write the run or checkpoint at `path` as the file `out`, with matrices of a type in TYPES or QUANTISED.

    It gets its name when it is complete. Needs no GPU, and memory for the largest tensor. What is not quantised is read again and
    compared. Raises UserError, and leaves nothing behind, where `out` exists, where the checkpoint cannot be read, and for everything
    of the model that the format cannot express.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f"--out {out} exists; remove it, or name another file")
    writer_class = _package().GGUFWriter
    exported = open_source(path, f"GGUF ({ARCHITECTURE})", _limits)
    dtype, number = TYPES.get(kind, TYPES["f32"])
    source = GgufSource(exported.weights(torch.float32), gguf_tensors(exported.model, exported.mapped), dtype)
    keys = {"general.file_type": number} | _keys(exported)
    try:
        with staging(out, keep=False) as folder:
            partial = folder / out.name
            write_gguf(writer_class(partial, ARCHITECTURE), keys, source)
            check_gguf(partial, source)
            if kind in QUANTISED:
                partial = folder / "quantised"
                quantise(folder / out.name, partial, kind)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            os.rename(partial, out)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}: {error.filename})") from None
    return Exported({out.name: out.stat().st_size}, len(source.tensors), exported.parameters)


def write_gguf(writer: Any, keys: dict[str, Any], source: GgufSource) -> None:
    """Write metadata and tensors with a GGUFWriter, and close it. One tensor is in memory at a time."""
    add = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    bfloat16 = _package().GGMLQuantizationType.BF16
    try:
        for key, value in keys.items():
            add[type(value)](key, value)
        for tensor in source.tensors:
            stored = source.stored(tensor)
            numpy = np.dtype("int16" if stored == torch.bfloat16 else str(stored).removeprefix("torch."))
            raw = bfloat16 if stored == torch.bfloat16 else None
            size = int(np.prod(tensor.shape)) * numpy.itemsize
            writer.add_tensor_info(tensor.name, tensor.shape, numpy, size, raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in source.tensors:
            writer.write_tensor_data(source.make(tensor))
    finally:
        writer.close()


def check_gguf(path: Path, source: GgufSource) -> None:
    """Read all tensors of a file again. Raises UserError where one is not what was to be written."""
    written = {tensor.name: tensor for tensor in _package().GGUFReader(path).tensors}
    if odd := sorted(written.keys() ^ {tensor.name for tensor in source.tensors}):
        raise UserError(f"{path}: tensor {odd[0]} was not written as planned; export again")
    for tensor in source.tensors:
        found, made = (values.reshape(-1).view(np.uint8) for values in (written[tensor.name].data, source.make(tensor)))
        if not np.array_equal(found, made):
            raise UserError(f"{path}: {tensor.name} is not what was written: the disk may be failing; export again")


def _keys(source: ExportSource) -> dict[str, Any]:
    """The metadata of the file."""
    opened, model, manifest = source.opened, source.model, source.opened.manifest
    assert model.vocab is not None
    sleep = sleep_json(source.sleep, len(model.pattern), source.feedback())
    licences = {f"sleeptrain.licence.{name}": text for name, text in licence_files(opened.run).items()}
    return {
        "general.type": "model", "general.quantization_version": 2, "general.name": opened.run.resolve().name,
        **{f"{ARCHITECTURE}.{key}": value for key, value in _model_keys(model, manifest.length).items()},
        **tokenizer_keys(manifest, source.tokenizer(), model.vocab),
        "sleeptrain.step": opened.step, "sleeptrain.sleep": json.dumps(sleep), **licences,
    }  # fmt: skip


def _model_keys(model: Model, length: int) -> dict[str, Any]:
    """The keys of the architecture. `length`: tokens of the longest context in training."""
    a, g, interval = model.attention, model.deltanet, full_attention_interval(model.pattern)
    return {
        "block_count": len(model.pattern), "context_length": max(POSITIONS, length), "embedding_length": model.width,
        "feed_forward_length": model.mlp.hidden, "attention.head_count": a.heads, "attention.head_count_kv": a.kv_heads,
        "attention.key_length": a.head_dim, "attention.value_length": a.head_dim,
        "attention.layer_norm_rms_epsilon": float(model.eps), "rope.freq_base": float(a.theta),
        "rope.dimension_count": rotary_dims(a), "rope.dimension_sections": rotary_sections(a.head_dim),
        "ssm.conv_kernel": g.conv, "ssm.state_size": g.head_dim, "ssm.group_count": g.key_heads,
        "ssm.time_step_rank": g.value_heads, "ssm.inner_size": g.value_heads * g.head_dim,
        "attention.recurrent_layers": [letter == "G" for letter in model.pattern],
        # For versions of llama.cpp that do not read the list.
        **({"full_attention_interval": interval} if interval else {}),
    }  # fmt: skip


def rotary_sections(head_dim: int) -> list[int]:
    """Pairs of dimensions that turn with time, height and width, in turn, which the architecture demands.

    Positions of text are equal in all sections, so that any division will do; together they have at most `head_dim` dimensions.
    """
    return [11, 11, 10, 0] if head_dim >= 32 else [head_dim // 3] * 3 + [0]


def _limits(model: Model) -> Iterator[tuple[str, str]]:
    """What `qwen35` of llama.cpp cannot express of a model that Qwen3.5 in transformers can."""
    if "A" in model.pattern and rotary_dims(model.attention) == 0:
        yield "model.attention.rotary", "llama.cpp was not tried without rotary positions"
    if "A" in model.pattern and model.attention.head_dim < 3:
        yield "model.attention.head_dim", "its heads have at least 3 dimensions"


def _package() -> Any:
    try:
        import gguf
    except ImportError:
        raise UserError("export to GGUF needs the package gguf; install it: pip install 'sleeptrain[gguf]'") from None
    return gguf
