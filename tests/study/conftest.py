"""The program in this process."""

from tests.cli.conftest import sleeptrain

__all__ = ["sleeptrain"]
