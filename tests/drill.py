"""Drills: tests with the marker `drill` that draw faults from a seed. CI runs seed 0; `make drills` runs random seeds.

A drill takes the fixture `drill_seed` and derives every random choice from it. A failed drill prints how to repeat it.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest

SEED = "drill_seed"
VARIABLE = "DRILL_SEEDS"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --drill-seeds."""
    about = f"comma-separated seeds of drills (default: the environment variable {VARIABLE}, else 0)"
    parser.addoption("--drill-seeds", metavar="SEEDS", help=about)


def seeds(option: str | None) -> list[int]:
    """The seeds of an option, of the environment, or [0]. Raises UsageError for what is no list of whole numbers."""
    text = option or os.environ.get(VARIABLE) or "0"
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        message = f"{text!r}: the seeds of drills are whole numbers with commas between them"
        raise pytest.UsageError(message) from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every drill once per seed."""
    if SEED in metafunc.fixturenames:
        metafunc.parametrize(SEED, seeds(metafunc.config.getoption("--drill-seeds")), ids="seed={}".format)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to the report of a failed drill how to repeat it."""
    report = yield
    if report.failed and SEED in getattr(item, "fixturenames", ()):
        seed = item.callspec.params[SEED]  # type: ignore[attr-defined]
        report.sections.append(("repeat", f"make drills {VARIABLE}={seed} DRILL={item.originalname}"))  # type: ignore[attr-defined]
    return report
