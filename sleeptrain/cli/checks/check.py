"""A check of `sleeptrain doctor` and its results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class CheckResult:
    """One row of the table that `sleeptrain doctor` prints."""

    name: str
    status: Literal["ok", "missing", "failed"]
    detail: str
    advice: str = ""
    needed: bool = True
    """Whether training on a CPU needs it."""


@dataclass(frozen=True)
class Check:
    """A named function that yields results. An exception that it raises becomes a failed result with `advice`."""

    name: str
    find: Callable[[], Iterator[CheckResult]]
    advice: str
    needed: bool = True


def run_check(check: Check) -> list[CheckResult]:
    """The results of one check. An exception adds a result after those already yielded: missing for ImportError, else failed."""
    results: list[CheckResult] = []
    try:
        results += check.find()
    except Exception as error:
        first_line = next(iter(str(error).splitlines()), "")
        status: Literal["missing", "failed"] = "missing" if isinstance(error, ImportError) else "failed"
        detail = f"{type(error).__name__}: {first_line}"
        results.append(CheckResult(check.name, status, detail, check.advice, check.needed))
    return results
