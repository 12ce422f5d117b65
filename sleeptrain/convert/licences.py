"""Licence files of a base model, which go with everything that is made from it."""

from __future__ import annotations

from pathlib import Path

from sleeptrain.recipe.load_trained import BEST
from sleeptrain.recipe.recipe import load_recipe
from sleeptrain.run.folder import CONFIG

PATTERNS = ("LICENSE*", "LICENCE*", "NOTICE*")


def licence_files(folder: Path) -> dict[str, str]:
    """The licence files in a folder, by name; for a run without any, those of the run that it started from (`init_from`)."""
    found = {
        p.name: p.read_text(errors="replace")
        for pattern in PATTERNS
        for p in sorted(folder.glob(pattern))
        if p.is_file()
    }
    if found or not (folder / CONFIG).exists():
        return found
    base = load_recipe(str(folder / CONFIG)).value.init_from
    if base is None:
        return {}
    run = Path(base).parent.parent if Path(base).name.startswith("step-") or Path(base).name == BEST else Path(base)
    return licence_files(run) if run.is_dir() and run.resolve() != folder.resolve() else {}
