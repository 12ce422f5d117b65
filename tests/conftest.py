"""Shared by all tests: one thread per process, the options of drills, the order of files, and graphs that are forgotten."""

import sys
from collections.abc import Iterator

import pytest
import torch

from tests.drill import pytest_addoption, pytest_generate_tests, pytest_runtest_makereport

__all__ = ["pytest_addoption", "pytest_generate_tests", "pytest_runtest_makereport"]

torch.set_num_threads(1)

LONG = ("train", "kernels", "tests", "plan", "execute", "benchmarks", "cli", "checkpoint", "parallel", "engine")
"""Folders whose files take long. They are begun first, so that no worker is left alone with one at the end."""


@pytest.fixture(scope="module", autouse=True)
def forget_graphs() -> Iterator[None]:
    """A file begins without graphs of torch.compile: all files that a worker runs would share the limit of them for a function."""
    if dynamo := sys.modules.get("torch._dynamo"):
        dynamo.reset()
    yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order tests by folder; within a folder they stay as they are. Tests of a GPU are skipped without one."""
    order = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.parent.name, len(LONG)))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch sees none here"))
