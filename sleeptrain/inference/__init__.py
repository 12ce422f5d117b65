"""Sessions: a model that reads and writes token by token, and sleeps when a window is full."""

from sleeptrain.inference.session import SleepSession

__all__ = ["SleepSession"]
