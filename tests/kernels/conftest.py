"""A worker process in which Triton interprets its kernels, which must be configured before Triton is first imported."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest


def _interpret() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    import torch

    torch.set_num_threads(1)
    # torch.empty is filled with NaN, so that elements that no kernel writes show up in the results.
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.fixture(scope="session")
def interpreted() -> Iterator[Callable[..., Any]]:
    """`interpreted(fn, *args)` calls a top-level function of a test file in that process and returns its result."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_interpret) as pool:
        yield lambda fn, *args: pool.submit(fn, *args).result()
