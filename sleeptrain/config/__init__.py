"""Configuration: load a recipe into typed sections, override it, explain where each value came from, and complain once."""

from sleeptrain.config.errors import Problem, RunFailed, UserError
from sleeptrain.config.files import configs_root
from sleeptrain.config.load import load
from sleeptrain.config.resolved import Resolved
from sleeptrain.config.rules import Rule, check

__all__ = ["Problem", "Resolved", "Rule", "RunFailed", "UserError", "check", "configs_root", "load"]
