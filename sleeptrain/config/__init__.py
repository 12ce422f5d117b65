"""Configuration: load a recipe into typed sections, override it, explain where each value came from, and complain once."""

from sleeptrain.config.errors import Problem, UserError

__all__ = ["Problem", "UserError"]
