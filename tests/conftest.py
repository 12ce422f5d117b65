"""Shared by all tests: one thread per process, and the options of drills."""

import torch

from tests.drill import pytest_addoption, pytest_generate_tests, pytest_runtest_makereport

__all__ = ["pytest_addoption", "pytest_generate_tests", "pytest_runtest_makereport"]

torch.set_num_threads(1)
