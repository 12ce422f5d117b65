"""Engines of the tiny model, saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sleeptrain import checkpoint
from sleeptrain.checkpoint.folder import KEEP_ALL, step_folder
from sleeptrain.engine import Engine, Optim
from tests.engine.tiny import Tiny, make_engine


def fresh(name: str, precision: str, zero: int, seed: int = 0, model: Tiny | None = None, **changes: Any) -> Engine:
    """An engine of the tiny model, or of another one."""
    optim = Optim(name, **{"lr": 0.02, "adam_lr": 0.01, "ns_dtype": "float32", **changes})  # type: ignore[arg-type]
    return make_engine(model or Tiny(seed), optim, precision, zero)


def save(engine: Engine, folder: Path, step: int, keep: checkpoint.KeepPolicy = KEEP_ALL) -> Path:
    """Save a checkpoint and wait for it; the state of the run is the step, that of a rank its number."""
    saver = checkpoint.Saver(engine, folder, keep, config="train: {}\n")
    saver.save(step, {"at": step}, {"rank": engine.process.rank, "step": step})
    saver.wait()
    return step_folder(folder, step)


def load(engine: Engine, folder: Path, patience: float = 0.0) -> checkpoint.Loaded:
    """Load the newest whole checkpoint."""
    found = checkpoint.newest_whole(engine.process, folder, patience)
    assert found is not None
    return checkpoint.load(engine, *found)
