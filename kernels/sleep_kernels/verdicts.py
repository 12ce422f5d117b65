"""Verdicts of the self-test: which kernels were right on a GPU, and from which Triton, assembler and sources. Imports no Triton.

They are read from the package (verdicts.json) and from the user's cache folder, which counts where the two differ.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sleep_kernels import verified

SHIPPED = Path(__file__).with_name("verdicts.json")


@dataclass(frozen=True)
class VerdictKey:
    """What a verdict belongs to."""

    triton: str
    """Version, as `ptxas`."""
    ptxas: str
    arch: str
    """For instance "sm_90"."""
    dtype: str
    d: int
    """d_k = d_v."""
    sources: str
    """Hash of the kernels' sources and of their launch parameters for this dtype and d."""

    @classmethod
    def of(cls, entry: dict[str, Any], ptxas: str) -> VerdictKey:
        """That of an entry of verified.json, assembled by a version of ptxas."""
        return cls(entry["triton"], ptxas, entry["arch"], entry["dtype"], entry["d"], sources(entry))


def cached() -> Path:
    """The file of verdicts in the user's cache folder: XDG_CACHE_HOME, or ~/.cache."""
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser(
        "~/.cache"
    )  # a user may have no home, as in a container
    return Path(folder) / "sleeptrain" / "verdicts.json"


def verdict(key: VerdictKey) -> bool | None:
    """Whether these kernels were right; None if they were never compared."""
    return {**_read(SHIPPED), **_read(cached())}.get(key)


def right_somewhere(dtype: str, d: int) -> bool:
    """Whether any GPU, Triton and assembler had these kernels right, in their present sources."""
    known = {**_read(SHIPPED), **_read(cached())}
    now = {sources(entry) for entry in verified.table() if (entry["dtype"], entry["d"]) == (dtype, d)}
    return any(right and (key.dtype, key.d) == (dtype, d) and key.sources in now for key, right in known.items())


def write(path: Path, key: VerdictKey, right: bool) -> None:
    """Add a verdict to a file, in place of an earlier one of the same key. The file is replaced atomically.

    Verdicts of other sources are left out: they are of no use any more.
    """
    now = {sources(entry) for entry in verified.table()}
    known = {each: was for each, was in _read(path).items() if each.sources in now} | {key: right}
    rows = [json.dumps(dataclasses.asdict(each) | {"right": was}) for each, was in known.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}.part")
    fresh.write_text("[\n " + ",\n ".join(rows) + "\n]\n")
    fresh.replace(path)


def sources(entry: dict[str, Any]) -> str:
    """Hash of the files that hold Triton kernels, and of an entry's launch parameters."""
    chosen = json.dumps([entry["launches"], entry["precision"]], sort_keys=True)
    return hashlib.sha256(f"{_kernels()} {chosen}".encode()).hexdigest()[:16]


@functools.cache
def _kernels() -> str:
    files = sorted(Path(__file__).parent.glob("triton_*.py"))
    return hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()


def _read(path: Path) -> dict[VerdictKey, bool]:
    """The verdicts of a file; none of one that is not there or cannot be read as such."""
    return dict(_rows(path))


def _rows(path: Path) -> Iterator[tuple[VerdictKey, bool]]:
    try:
        for row in json.loads(path.read_text()):
            right = row.pop("right")
            yield VerdictKey(**row), right is True
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return  # a broken cache is no verdict; the self-test writes it again
