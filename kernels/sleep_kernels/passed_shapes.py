"""Shapes of runs that have passed the self-test on this kind of machine, so that it is not repeated at every start.

Verdicts (verdicts.py) are about kernels for a dtype and d, and decide whether a run uses them; these are about the shapes of one run. They
belong to a shape, the GPU, the versions of torch, Triton and its assembler, and the sources of the kernels. Failures are not kept.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from sleep_kernels import assembler, dispatch, verdicts, verified
from sleep_kernels.comparison import ErrorReport, Shape


@dataclass(frozen=True)
class PassedShapes:
    """Shapes that have passed, in the files of a folder, one each."""

    folder: Path
    machine: str
    """What a comparison depends on besides the shape."""

    @classmethod
    def of(cls, device: torch.device) -> "PassedShapes":
        """Those of this user for a GPU, in the folder of the verdicts."""
        return cls(verdicts.cached().parent / "passed-shapes", _machine(device))

    def missing(self, shapes: Iterable[Shape]) -> list[Shape]:
        """The shapes that have not passed yet."""
        return [shape for shape in shapes if not self._path(shape).exists()]

    def keep(self, report: ErrorReport) -> None:
        """Keep the shape of a report that passed. A folder that cannot be written keeps none."""
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

    arch, options = "sm_{}{}".format(*torch.cuda.get_device_capability(device)), knobs.nvidia
    parts = {
        "gpu": torch.cuda.get_device_name(device), "arch": arch, "torch": torch.__version__,
        "triton": dispatch.triton_version(), "assembler": assembler.in_use(arch),
        "options": [options.disable_ptxas_opt, options.ptxas_options], "sources": sources_hash(),
    }  # fmt: skip
    return json.dumps(parts)


def sources_hash() -> str:
    """Hash of the files of this package and of the table of launch parameters."""
    found = hashlib.sha256()
    for path in sorted([*Path(__file__).parent.glob("*.py"), verified.TABLE]):
        found.update(f"{path.name}\n".encode() + path.read_bytes())
    return found.hexdigest()
