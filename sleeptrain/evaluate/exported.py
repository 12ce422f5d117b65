"""Opens an exported Hugging Face folder as the class whose windows sleep. Needs transformers 5."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sleeptrain.errors import UserError


@dataclass(frozen=True)
class ExportedModel:
    """A model that sleeps, and its tokenizer, both of transformers."""

    model: Any
    tokenizer: Any


def open_exported(folder: Path, dtype: str = "auto", trust_remote_code: bool = False) -> ExportedModel:
    """The model in `folder`, on the CPU, for inference.

    dtype              of the weights: auto (that of the folder), float32, bfloat16
    trust_remote_code  run the class in the folder's modeling_sleep.py; otherwise that of this package, and nothing of the folder

    Raises UserError where `folder` is no export of sleeptrain, or incomplete.
    """
    section = _config(folder).get("sleep")
    if not isinstance(section, dict):
        raise UserError(
            f"{folder / 'config.json'} has no section sleep; name a folder that sleeptrain export --to hf wrote"
        )
    if not (folder / "tokenizer.json").exists():
        raise UserError(f"{folder} has no tokenizer.json: its data was tokenized already, so that texts have no tokens")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sleeptrain.convert.modeling_sleep import SleepForCausalLM

    options: dict[str, Any] = {"trust_remote_code": True} if trust_remote_code else {}
    cls: Any = AutoModelForCausalLM if trust_remote_code else SleepForCausalLM
    try:
        model, info = cls.from_pretrained(folder, dtype=dtype, output_loading_info=True, **options)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder} cannot be loaded ({str(error).splitlines()[0]}); export the run again") from None
    if wrong := [name for key in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[key]]:
        raise UserError(f"{folder}: tensor {wrong[0]} is missing, unknown or of another shape; export the run again")
    return ExportedModel(model.eval(), tokenizer)


def _config(folder: Path) -> dict[str, Any]:
    """The content of its config.json."""
    try:
        body = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        run = (folder / "config.yaml").exists() or (folder / "checkpoint.json").exists()
        hint = (
            f"it is a run; export it: sleeptrain export {folder} --to hf --out {folder}-hf"
            if run
            else "name an exported folder"
        )
        raise UserError(f"{folder / 'config.json'} cannot be read ({error}); {hint}") from None
    return body if isinstance(body, dict) else {}
