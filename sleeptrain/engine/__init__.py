"""Optimizer, learning-rate schedule, and DeepSpeed behind a small interface."""

from sleeptrain.engine.build import EngineSpec, build_engine
from sleeptrain.engine.config import LRSchedule, Optim
from sleeptrain.engine.engine import Engine, StepResult
from sleeptrain.engine.lr_schedule import lr_multiplier

__all__ = ["Engine", "EngineSpec", "LRSchedule", "Optim", "StepResult", "build_engine", "lr_multiplier"]
