"""The environment that a result depends on: versions of packages, of Python and of the code, and the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "sleeptrain", "torch", "deepspeed", "megatron-core", "triton", "mosaicml-streaming", "wandb", "omegaconf", "numpy",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Versions of what a result depends on, and of the code itself, as JSON values."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": versions,
        "code": revision() or versions["sleeptrain"],
    }


def revision() -> str | None:
    """The revision of a checkout, as `git describe` prints it, or that of a job's copy; None without git or outside a checkout."""
    copied = Path(__file__).parents[1] / "REVISION"
    if copied.exists():
        return copied.read_text().strip()
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    except OSError:  # git is not installed
        return None
