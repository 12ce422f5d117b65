"""Configuration: load a recipe into typed sections, override it, name every value's source, report all errors."""

from sleeptrain.config.load import load
from sleeptrain.config.resolved import Resolved
from sleeptrain.config.sections import Problem

__all__ = ["Problem", "Resolved", "load"]
