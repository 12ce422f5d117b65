"""The run folder: configuration, manifest of the data, environment, metrics, checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sleeptrain import checkpoint
from sleeptrain.errors import UserError
from sleeptrain.run.environment import environment

CONFIG, MANIFEST, ENVIRONMENT, CHECKPOINTS = "config.yaml", "manifest.json", "environment.json", "checkpoints"
SEED = "seed-"


def is_run_config(path: Path) -> bool:
    """Whether a file is the configuration of a run, in its folder."""
    beside = (MANIFEST, ENVIRONMENT, "metrics.jsonl", CHECKPOINTS)
    return path.name == CONFIG and path.is_file() and any((path.parent / name).exists() for name in beside)


def seed_folder(folder: Path, seed: int) -> Path:
    """The run folder of one seed, for several seeds of a recipe whose run folder would be `folder`."""
    return folder / f"{SEED}{seed}"


def is_seed_folder(folder: Path) -> bool:
    """Whether a run folder was named by `seed_folder`."""
    return folder.name.removeprefix(SEED).isdecimal() and folder.name.startswith(SEED)


def runs_of_seeds(folder: Path) -> list[str]:
    """The run folders of the seeds below `folder` in ascending order; `folder` itself if there are none."""
    seeds = [path.parent for path in folder.glob(f"{SEED}*/{CONFIG}") if is_seed_folder(path.parent)]
    own = not seeds or (folder / CONFIG).exists()
    return [str(folder)] if own else [str(path) for path in sorted(seeds, key=lambda path: int(path.name[len(SEED) :]))]


def has_steps(folder: Path) -> bool:
    """Whether a run in `folder` has made a step."""
    metrics = folder / "metrics.jsonl"
    begun = has_checkpoint(folder) or (metrics.exists() and metrics.stat().st_size > 0)
    return begun and (folder / CONFIG).exists()


def has_checkpoint(folder: Path) -> bool:
    """Whether a run in `folder` has saved a checkpoint."""
    return checkpoint.latest(folder / CHECKPOINTS) is not None


def data_hash(folder: Path) -> str | None:
    """The hash of the data that the run in `folder` was trained on; None where there is no manifest. UserError if it is damaged."""
    path = folder / MANIFEST
    try:
        return str(json.loads(path.read_text())["hash"]) if path.exists() else None
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); copy it from the folder of the data") from None


def write_run_folder(folder: Path, config: str, manifest: dict[str, Any], tokenizer: Path) -> None:
    """Make the folder if it is new and write configuration, manifest, environment, and a copy of `tokenizer` if it is a file.

    Raises OSError. Every file is written beside its place and renamed, so that no file is ever half written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / CONFIG, config.encode())
    _write(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
    _write(folder / ENVIRONMENT, json.dumps(environment(), indent=2).encode())
    if tokenizer.is_file():
        _write(folder / tokenizer.name, tokenizer.read_bytes())


def _write(path: Path, content: bytes) -> None:
    staged = path.with_name(path.name + ".tmp")
    staged.write_bytes(content)
    staged.replace(path)
