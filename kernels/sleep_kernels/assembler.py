"""The assembler of Triton's kernels: which ptxas Triton uses, and the choice of the installed one that the kernels are verified for.

The same kernels have been right from one ptxas and wrong from another, so that a verdict of the self-test names the version. The extra
`gpu` installs the version below as a package of its own; Triton's wheel has another.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
from importlib import metadata

VARIABLE = "TRITON_PTXAS_PATH"
"""Where Triton looks for ptxas first."""
PACKAGE = "nvidia-cuda-nvcc"
VERSION = "13.0.88"
"""The version of package and ptxas that the extra `gpu` pins."""
FILE = "nvidia/cu13/bin/ptxas"
"""ptxas in that package."""
EXTRA = "pip install 'sleeptrain[gpu]'"


def packaged() -> str | None:
    """The path of the ptxas that the extra `gpu` installs; None where it is not installed, or in another version."""
    try:
        package = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        return None
    path = str(package.locate_file(FILE))
    return path if package.version == VERSION and os.access(path, os.X_OK) else None


def use_packaged() -> None:
    """Let Triton use the ptxas of the extra `gpu`, by TRITON_PTXAS_PATH in the environment; a path that is set there is kept."""
    if not os.environ.get(VARIABLE) and (path := packaged()) is not None:
        os.environ[VARIABLE] = path


def in_use(arch: str) -> tuple[str, str] | None:
    """Path and version, such as "13.0.88", of the ptxas that Triton uses for an architecture such as "sm_90"; imports Triton.

    Chooses that of the extra `gpu` first (`use_packaged`). None where there is no Triton, or Triton finds no ptxas.
    """
    use_packaged()
    try:
        from triton.backends.nvidia.compiler import get_ptxas

        path = get_ptxas(int(arch.removeprefix("sm_"))).path
    except (ImportError, RuntimeError, OSError):
        return None
    return path, version_of(path)


@functools.cache
def version_of(path: str) -> str:
    """What a ptxas says of its version: "13.0.88"; of one that says something else, the last line of it."""
    told = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"\bV(\d+\.\d+\.\d+)\b", told)
    return found[1] if found else (told.strip().splitlines() or ["of unknown version"])[-1]


def way_out(version: str | None) -> str:
    """What makes Triton use the version of the extra `gpu`, as a clause that ends in a comma; empty where it does already."""
    if version == VERSION:
        return ""
    if packaged() is not None:
        return f"unset {VARIABLE} to use ptxas {VERSION}, which is installed, "
    unset = f"and unset {VARIABLE}, " if os.environ.get(VARIABLE) else ""
    return f"install ptxas {VERSION} with `{EXTRA}`, {unset}"
