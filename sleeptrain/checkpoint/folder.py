"""Checkpoint folders: written beside their place and renamed when complete.

step-00000100/
    deepspeed/            parameters and optimizer state in DeepSpeed's format, one file per process
    model.safetensors     every full parameter by name, in fp32: for evaluation and export
    state/00000.json      the caller's state of each rank: step, data position, random states
    layout.json           the layout it was written with: processes, mesh sizes, ZeRO stage, precision and optimizer
    config.yaml           the resolved configuration, if given
latest                    the name of the newest checkpoint
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from sleeptrain.engine.engine import Engine
from sleeptrain.errors import UserError
from sleeptrain.parallel.config import Mesh

DATA_ONLY = Mesh()
"""Data parallelism alone."""


def save(
    engine: Engine, folder: Path, step: int, state: dict[str, Any],
    *, mesh: Mesh = DATA_ONLY, keep: int = 0, config: str = "",
) -> Path:  # fmt: skip
    """Write `folder/step-<step>` and point `latest` to it; a collective, between steps. Returns the checkpoint's path.

    `state` is this rank's own and must be JSON-serializable; `mesh` is the mesh of `engine`. With `keep` > 0, all but the
    newest `keep` checkpoints are removed. Files are written to a staging folder, which is renamed when complete: a process
    that dies leaves no incomplete checkpoint under the final name.
    """
    first = engine.process.rank == 0
    final = folder / f"step-{step:08d}"
    staging = folder / f".{final.name}.part"
    if first:
        shutil.rmtree(staging, ignore_errors=True)
        (staging / "state").mkdir(parents=True)
    dist.barrier()
    engine.save(staging)
    _write_json(staging / "state" / f"{engine.process.rank:05d}.json", state)
    weights = engine.weights()
    if first and weights is not None:
        from safetensors.torch import save_file

        save_file(weights, staging / "model.safetensors")
        _write_json(staging / "layout.json", _layout(engine, mesh))
        if config:
            (staging / "config.yaml").write_text(config)
    dist.barrier()
    if first:
        _commit(staging, final)
        _set_latest(folder, final.name)
        if keep > 0:
            # The newest by step. After a rollback the new checkpoint may not be among them, and is kept all the same.
            for old in _checkpoints(folder)[:-keep]:
                if old != final:
                    shutil.rmtree(old)
    dist.barrier()
    return final


def latest(folder: Path) -> Path | None:
    """The checkpoint that `folder/latest` names, else the one of the highest step; None if there is none."""
    pointer = folder / "latest"
    if pointer.is_file():
        named = folder / pointer.read_text().strip()
        if (named / "layout.json").is_file():
            return named
    checkpoints = _checkpoints(folder)
    return checkpoints[-1] if checkpoints else None


def load(engine: Engine, path: Path, *, mesh: Mesh = DATA_ONLY) -> dict[str, Any]:
    """Restore parameters and optimizer bit for bit; a collective. Returns the state that this rank passed to `save`.

    Raises UserError on all ranks, with a message on rank 0, if `path` is not a checkpoint or has another layout.
    """
    if obstacle := _layout_obstacle(path, _layout(engine, mesh)):
        raise UserError([obstacle] if engine.process.rank == 0 else [])
    engine.load(path)
    return json.loads((path / "state" / f"{engine.process.rank:05d}.json").read_text())


def load_weights(path: Path) -> dict[str, Tensor]:
    """Every full parameter by name, in fp32 on the CPU. Needs neither DeepSpeed nor a process group.

    Raises UserError if `path` is not a checkpoint.
    """
    from safetensors.torch import load_file

    file = path / "model.safetensors"
    if not file.is_file():
        raise UserError(f"{path} is not a checkpoint: it has no model.safetensors")
    return load_file(file)


def _layout(engine: Engine, mesh: Mesh) -> dict[str, Any]:
    """The content of layout.json for a run."""
    return {
        "processes": engine.process.world,
        "data": engine.data_parallel_size,
        "pipe": mesh.pipe,
        "tensor": mesh.tensor,
        "sequence": mesh.sequence,
        "zero": engine.zero,
        "precision": engine.precision,
        "optimizer": type(engine.optimizer).__name__.lower(),
    }


RECIPE_FIELDS = {"precision": "train.precision", "optimizer": "optim.name"}
"""Field of the recipe for keys of a layout that are not in its section `mesh:`."""


def _layout_obstacle(path: Path, current: dict[str, Any]) -> str | None:
    """Why a run with the layout `current` cannot load the checkpoint at `path`, and what to do; None if it can."""
    if not (path / "layout.json").is_file():
        return f"{path} is not a checkpoint: it has no layout.json"
    saved = current | json.loads((path / "layout.json").read_text())
    changed = [name for name in current if saved[name] != current[name]]
    if not changed:
        return None
    # No override for the data axis: its size follows from the number of processes.
    names = [name for name in changed if name not in ("processes", "data")]
    overrides = " ".join(f"{RECIPE_FIELDS.get(name, f'mesh.{name}')}={str(saved[name]).lower()}" for name in names)
    start = _count(saved["processes"]) + (f" with {overrides}" if overrides else "")
    return (
        f"{path} was written by {_describe(saved)}, and this run has {_describe(current)}; a run continues with the layout "
        f"of its checkpoint: start {start}, or begin another run with run_dir=..."
    )


def _describe(layout: dict[str, Any]) -> str:
    """A layout as a phrase of an error message."""
    axes = " x ".join(f"{axis} {layout[axis]}" for axis in ("data", "pipe", "tensor"))
    sequence = " with sequence" if layout["sequence"] else ""
    return f"{_count(layout['processes'])} ({axes}{sequence}, ZeRO {layout['zero']}, {layout['precision']}, {layout['optimizer']})"


def _count(processes: int) -> str:
    return f"{processes} process{'' if processes == 1 else 'es'}"


def _checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in order of step."""
    return sorted(path for path in folder.glob("step-*") if (path / "layout.json").is_file())


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def _commit(staging: Path, final: Path) -> None:
    """Flush the files of `staging` to disk and rename it to `final`, which is replaced if it exists."""
    for path in [*staging.rglob("*"), staging]:
        _fsync(path)
    if final.exists():
        # The run was rolled back to an earlier step and reaches this one again.
        replaced = staging.with_suffix(".old")
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
        staging.rename(final)
        shutil.rmtree(replaced)
    else:
        staging.rename(final)
    _fsync(final.parent)


def _set_latest(folder: Path, name: str) -> None:
    """Write the file `latest` atomically."""
    pointer = folder / ".latest.part"
    pointer.write_text(name + "\n")
    _fsync(pointer)
    pointer.replace(folder / "latest")
    _fsync(folder)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
