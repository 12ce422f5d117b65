"""Exports a checkpoint as a Hugging Face folder: the plain model for every engine that reads Qwen3.5, with a class that sleeps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from sleep_data.staging import publish, staging
from sleeptrain.convert.hf_config import config_json
from sleeptrain.convert.licences import licence_files
from sleeptrain.convert.model_card import ModelCard
from sleeptrain.convert.shards import INDEX, folder_sink, index_json, plan_shards, write_shards
from sleeptrain.convert.source import Exported, ExportSource, WeightSource, open_source
from sleeptrain.convert.tensor_files import TensorFiles
from sleeptrain.convert.tokenizer_files import token_ids, tokenizer_files
from sleeptrain.errors import UserError
from sleeptrain.run.folder import CONFIG, MANIFEST

ORIGIN = "sleeptrain"
"""The subfolder with recipe, manifest and tokenizer of the run, from which an import restores it."""
MODELING = "modeling_sleep.py"


def export_hf(path: Path, out: Path, dtype: torch.dtype, shard_size: int) -> Exported:
    """Write the run or checkpoint at `path` as a Hugging Face folder `out`, which is renamed to its name when it is complete.

    Needs no GPU, and memory for the largest tensor. The files are read again and compared. Raises UserError, and leaves nothing
    behind, where `out` exists, where the checkpoint cannot be read, and for everything of the model that the format cannot express.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f"--out {out} exists; remove it, or name another folder")
    exported = open_source(path, "qwen3_5_text")
    source = exported.weights(dtype)
    shards = plan_shards(source.layouts(), shard_size)
    try:
        with staging(out, keep=False) as folder:
            for name, text in _texts(exported, dtype).items():
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
    return Exported(files, len(exported.mapped), exported.parameters)


def check_written(folder: Path, source: WeightSource) -> None:
    """Read all tensors of a folder again. Raises UserError where one is not what was to be written."""
    written = TensorFiles(folder)
    if odd := sorted(set(written.names()) ^ set(source.layouts())):
        raise UserError(f"{folder}: tensor {odd[0]} was not written as planned; export again")
    for name in written.names():
        if not torch.equal(written.read(name), source.make(name)):
            raise UserError(f"{written.where(name)} is not what was written: the disk may be failing; export again")


def _texts(source: ExportSource, dtype: torch.dtype) -> dict[str, str]:
    """All files that hold no tensors."""
    manifest, run = source.opened.manifest, source.opened.run
    ids, name = token_ids(manifest), str(dtype).removeprefix("torch.")
    config = config_json(
        source.model, source.sleep, dtype=name, length=manifest.length, tokens=ids, feedback=source.feedback()
    )  # fmt: skip
    generation = {key: value for key, value in ids.items() if value is not None} | {"do_sample": False}
    original = source.tokenizer()
    tokenizer = tokenizer_files(manifest, original)
    licences = licence_files(run)
    card = ModelCard(source.opened, source.parameters, name, bool(tokenizer), tuple(licences))
    texts = {
        "config.json": json.dumps(config, indent=1), "generation_config.json": json.dumps(generation, indent=1),
        MODELING: Path(__file__).with_name(MODELING).read_text(), "README.md": card.text(), **tokenizer, **licences,
    }  # fmt: skip
    return texts | dict(_origin(run, original))


def _origin(run: Path, tokenizer: Path) -> Iterator[tuple[str, str]]:
    """Recipe, manifest of the data, and tokenizer as they are in the run folder."""
    for path in (run / CONFIG, run / MANIFEST, tokenizer):
        if path.is_file():
            yield f"{ORIGIN}/{path.name}", path.read_text(encoding="utf-8")
