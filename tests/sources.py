"""The sources of the repository for tests about them: product files, all files, and docs/layers.py as a module."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]


def load_layers() -> ModuleType:
    """docs/layers.py: the table of layers, the imports of the sources, the picture."""
    spec = importlib.util.spec_from_file_location("docs_layers", ROOT / "docs" / "layers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


layers = load_layers()
PRODUCT = [
    path
    for folder in (ROOT / "sleeptrain", *(ROOT / place / name for name, (place, _) in layers.INDEPENDENT.items()))
    for path in sorted(folder.rglob("*.py"))
]
"""Files of the four packages that are shipped."""
FILES = [*PRODUCT, *(p for folder in ("tests", "benchmarks", "docs") for p in sorted((ROOT / folder).rglob("*.py")))]


def name_of(path: Path) -> str:
    """A path relative to the repository, for test ids and messages."""
    return path.relative_to(ROOT).as_posix()
