"""Verdicts of the self-test that are kept: a comparison that has passed on this kind of machine is not repeated at every start.

A verdict belongs to a shape, the GPU, the versions of torch, Triton and its assembler, and the sources of the kernels. Failures are not kept.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from sleep_kernels import dispatch
from sleep_kernels.comparison import ErrorReport, Shape


@dataclass(frozen=True)
class VerdictCache:
    """Verdicts in the files of a folder, one each."""

    folder: Path
    machine: str
    """What verdicts depend on besides the shape."""

    @classmethod
    def of(cls, device: torch.device) -> "VerdictCache":
        """The cache of this user for a GPU: in $XDG_CACHE_HOME, or ~/.cache."""
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return cls(Path(base) / "sleeptrain" / "verdicts", _machine(device))

    def missing(self, shapes: Iterable[Shape]) -> list[Shape]:
        """The shapes that have not passed yet."""
        return [shape for shape in shapes if not self._path(shape).exists()]

    def keep(self, report: ErrorReport) -> None:
        """Keep a verdict, if it passed. A folder that cannot be written keeps none."""
        if not report.ok:
            return
        path = self._path(report.shape)
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            fresh = path.with_suffix(f".{os.getpid()}.part")
            fresh.write_text(f"{report}\n{self.machine}\n")
            fresh.replace(path)

    def _path(self, shape: Shape) -> Path:
        return self.folder / hashlib.sha256(f"{shape}\n{self.machine}".encode()).hexdigest()[:32]


def _machine(device: torch.device) -> str:
    """GPU, versions, options of the assembler and hash of the sources."""
    from triton import knobs
    from triton.backends.nvidia.compiler import get_ptxas

    major, minor = torch.cuda.get_device_capability(device)
    assembler, options = get_ptxas(10 * major + minor), knobs.nvidia
    parts = {
        "gpu": torch.cuda.get_device_name(device), "arch": f"sm_{major}{minor}", "torch": torch.__version__,
        "triton": dispatch.triton_version(), "assembler": [assembler.path, assembler.version],
        "options": [options.disable_ptxas_opt, options.ptxas_options], "sources": sources_hash(),
    }  # fmt: skip
    return json.dumps(parts)


def sources_hash() -> str:
    """Hash of the files of this package, the table of launch parameters among them."""
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.*")):
        if path.suffix in (".py", ".json"):
            found.update(f"{path.name}\n".encode() + path.read_bytes())
    return found.hexdigest()
