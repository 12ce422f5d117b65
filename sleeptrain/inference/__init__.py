"""Inference sessions: token-by-token reading and generation, with sleep at the end of a window."""

from sleeptrain.inference.session import SleepSession

__all__ = ["SleepSession"]
