"""A checkpoint is a folder that is there whole or not at all.

step-00000100/
    deepspeed/            parameters and optimizer as DeepSpeed writes them, a file a process
    model.safetensors     every parameter by name, whole, in fp32: for evaluation and export
    state/00000.json      what the caller gave on each rank: step, data position, random states
    layout.json           which processes wrote it: their number, the sizes of the mesh, ZeRO stage, precision and optimizer
    config.yaml           the resolved configuration, if given
latest                    the name of the newest one
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from sleeptrain.config.errors import UserError
from sleeptrain.engine.build import Engine
from sleeptrain.parallel.config import Mesh

DATA_ONLY = Mesh()
"""All processes share the rows."""


def save(
    engine: Engine, folder: Path, step: int, state: dict[str, Any],
    *, mesh: Mesh = DATA_ONLY, keep: int = 0, config: str = "",
) -> Path:  # fmt: skip
    """Writes `folder/step-<step>` and moves `latest` to it; a collective, between steps. Returns its path.

    `state` is this rank's own and must be JSON-able; `mesh` is how the processes of `engine` stand. `keep` > 0 then removes all but the newest that many. It is written
    beside its place and renamed when complete, so that a process that dies leaves no half checkpoint that looks whole.
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
        _point(folder, final.name)
        if keep > 0:
            # By step, not by age: after a rollback the steps beyond are of a history that was given up.
            for old in _found(folder)[:-keep]:
                if old != final:
                    shutil.rmtree(old)
    dist.barrier()
    return final


def latest(folder: Path) -> Path | None:
    """The checkpoint that `folder/latest` names, else the one with the highest step, else None."""
    pointer = folder / "latest"
    if pointer.is_file():
        named = folder / pointer.read_text().strip()
        if (named / "layout.json").is_file():
            return named
    found = _found(folder)
    return found[-1] if found else None


def load(engine: Engine, path: Path, *, mesh: Mesh = DATA_ONLY) -> dict[str, Any]:
    """Restores parameters and optimizer bit for bit; a collective. Returns the state this rank gave to `save`.

    UserError, of which rank 0 has the words, where `path` is no checkpoint, or was written by processes that stood otherwise.
    """
    if wrong := _other_layout(path, _layout(engine, mesh)):
        raise UserError([wrong] if engine.process.rank == 0 else [])
    engine.load(path)
    return json.loads((path / "state" / f"{engine.process.rank:05d}.json").read_text())


def load_weights(path: Path) -> dict[str, Tensor]:
    """Every parameter by name, whole, in fp32 on the CPU. Needs neither DeepSpeed nor other processes."""
    from safetensors.torch import load_file

    file = path / "model.safetensors"
    if not file.is_file():
        raise UserError(f"{path} is not a checkpoint: it has no model.safetensors")
    return load_file(file)


def _layout(engine: Engine, mesh: Mesh) -> dict[str, Any]:
    return {
        "processes": engine.process.world,
        "data": engine.data,
        "pipe": mesh.pipe,
        "tensor": mesh.tensor,
        "sequence": mesh.sequence,
        "zero": engine.zero,
        "precision": engine.precision,
        "optimizer": type(engine.optimizer).__name__.lower(),
    }


FIELDS = {"precision": "train.precision", "optimizer": "optim.name"}
"""Where a recipe says what a layout calls so; the rest is in its section `mesh:`."""


def _other_layout(path: Path, now: dict[str, Any]) -> str | None:
    """Why the checkpoint at `path` cannot be loaded at the layout `now`, and what to do; None if it can."""
    if not (path / "layout.json").is_file():
        return f"{path} is not a checkpoint: it has no layout.json"
    saved = now | json.loads((path / "layout.json").read_text())
    changed = [name for name in now if saved[name] != now[name]]
    if not changed:
        return None
    # The data axis is what the number of processes leaves.
    values = [(FIELDS.get(name, f"mesh.{name}"), saved[name]) for name in changed if name not in ("processes", "data")]
    back = " ".join(f"{field}={str(value).lower()}" for field, value in values)
    return (
        f"{path} was written by {_said(saved)}, and this run has {_said(now)}; a run continues at the sizes it was saved at: start "
        f"{_count(saved['processes'])}{f' with {back}' if back else ''}, or begin another run with run_dir=..."
    )


def _said(layout: dict[str, Any]) -> str:
    """A layout in words."""
    axes = " x ".join(f"{axis} {layout[axis]}" for axis in ("data", "pipe", "tensor"))
    sequence = " with sequence" if layout["sequence"] else ""
    return f"{_count(layout['processes'])} ({axes}{sequence}, ZeRO {layout['zero']}, {layout['precision']}, {layout['optimizer']})"


def _count(processes: int) -> str:
    return f"{processes} process{'' if processes == 1 else 'es'}"


def _found(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if (path / "layout.json").is_file())


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def _commit(staging: Path, final: Path) -> None:
    for path in [*staging.rglob("*"), staging]:
        _sync(path)
    if final.exists():
        # A run that went back to an earlier step and comes here again.
        aside = staging.with_suffix(".old")
        shutil.rmtree(aside, ignore_errors=True)
        final.rename(aside)
        staging.rename(final)
        shutil.rmtree(aside)
    else:
        staging.rename(final)
    _sync(final.parent)


def _point(folder: Path, name: str) -> None:
    pointer = folder / ".latest.part"
    pointer.write_text(name + "\n")
    _sync(pointer)
    pointer.replace(folder / "latest")
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
