"""The job: all sections of a recipe that a training run needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sleeptrain.data.config import Data
from sleeptrain.engine.config import Optim
from sleeptrain.model.config import Model
from sleeptrain.parallel.config import Mesh
from sleeptrain.program import Sleep
from sleeptrain.train.config import Checkpoint, Eval, Log, Train


@dataclass(frozen=True)
class Job:
    """Model, sleep program, data, optimizer, mesh, checkpoints, evaluation and logs of a training run."""

    model: Model = field(default_factory=Model)
    sleep: Sleep = field(default_factory=Sleep)
    data: Data = field(default_factory=Data)
    optim: Optim = field(default_factory=Optim)
    train: Train = field(default_factory=Train)
    mesh: Mesh = field(default_factory=Mesh)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    eval: Eval = field(default_factory=Eval)
    log: Log = field(default_factory=Log)
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Keys of DeepSpeed's own configuration; they override those derived from the sections above."""
