"""System programs that tests run: a missing one fails the test in CI and skips it, with a warning, elsewhere."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import pytest

PACKAGES = Path(__file__).parent / "system-packages.txt"
"""The Debian packages that `make setup-system` installs."""
FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Searched after PATH: daemons are installed there, and a user's PATH may lack them."""


class SystemProgramMissing(UserWarning):
    """A test is skipped because a system program is not installed; pytest lists it at the end of the run."""


def needs_system(program: str, *, package: str) -> str:
    """The path of `program`, which the Debian package `package` installs. Call it in a test or fixture.

    If the program is missing, the test fails where the environment variable CI is true, and is skipped elsewhere. Raises
    ValueError if `make setup-system` would not install the package.
    """
    listed = [line.partition("#")[0].strip() for line in PACKAGES.read_text().splitlines()]
    if package not in listed:
        raise ValueError(f"{package} is not in {PACKAGES}; add it, so that `make setup-system` installs it")
    found = shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", ""), *FOLDERS]))
    if found is not None:
        return found
    message = f"{program} is missing; `make setup-system` installs it (Debian package {package})"
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(message)
    warnings.warn(message, SystemProgramMissing, stacklevel=2)
    pytest.skip(message)
