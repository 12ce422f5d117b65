"""The engine of a run: optimizer, learning-rate schedule, and DeepSpeed behind a small interface."""

from sleeptrain.engine.build import Engine, StepResult, build_engine
from sleeptrain.engine.config import LRSchedule, Optim
from sleeptrain.engine.lr_schedule import lr_multiplier

__all__ = ["Engine", "LRSchedule", "Optim", "StepResult", "build_engine", "lr_multiplier"]
