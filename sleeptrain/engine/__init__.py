"""The engine of a run: optimizer and schedule, and DeepSpeed behind a small interface."""

from sleeptrain.engine.build import Engine, StepReport, build
from sleeptrain.engine.config import Optim, Schedule
from sleeptrain.engine.process import Place, init_distributed, leave
from sleeptrain.engine.recompute import recompute
from sleeptrain.engine.schedule import multiplier

__all__ = [
    "Engine",
    "Optim",
    "Place",
    "Schedule",
    "StepReport",
    "build",
    "init_distributed",
    "leave",
    "multiplier",
    "recompute",
]
