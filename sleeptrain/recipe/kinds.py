"""The kinds of YAML files - recipes, studies, cluster files, task files - and errors that say which kind was given instead."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TypeVar

from sleeptrain.config import Resolved, load
from sleeptrain.errors import UserError
from sleeptrain.recipe.shipped import configs_root
from sleeptrain.run.folder import CONFIG, MANIFEST, is_run_config, runs_of_seeds

T = TypeVar("T")
FOLDERS = {"recipe": "", "study": "study", "cluster file": "cluster", "task file": "task"}
"""Each kind of file and its folder in configs/."""
USES = {
    "recipe": "a recipe; train it with: sleeptrain train {name}",
    "study": "a study; run it with: sleeptrain study {name}",
    "cluster file": "a cluster file; it is named by --cluster of sleeptrain launch and plan",
    "task file": "a task file; build its data with: sleeptrain data build {name} --out DIR",
}
"""What is said of a file of each kind where another kind is wanted."""
MARKS = {
    "study": {"axes"},
    "cluster file": {"slurm", "nodes", "hardware"},
    "task file": {"task"},
    "recipe": {"model", "sleep", "data", "optim", "train"},
}
"""Keys of each kind that those after it do not have."""


def load_file(
    name: str,
    overrides: Sequence[str],
    schema: type[T],
    what: str,
    check: Callable[[Resolved[T], Collection[str]], list[str]] = lambda resolved, refused: [],
) -> Resolved[T]:
    """`config.load` of a file of the kind `what`: a path, or the name of a file in its folder of configs/.

    Raises UserError as `load` does. Where `name` is a folder, or a file of another kind, the one error says so.
    """
    root = configs_root()
    try:
        return load(name, overrides, schema, root / FOLDERS[what], check=check, what=what)
    except UserError:
        if (other := _other(name, what)) is not None:
            raise UserError(f"{what} {name}: this is {other}") from None
        raise


def _other(name: str, what: str) -> str | None:
    """What `name` is, if it is not of the kind `what`, and which command takes it; None if that cannot be told."""
    root = configs_root()
    for kind in (what, *FOLDERS):
        folder = root / FOLDERS[kind]
        for path in (Path(name), Path(f"{name}.yaml"), folder / name, folder / f"{name}.yaml"):
            if path.is_file():
                found = _kind_of(path)
                return None if found is None or found == what else USES[found].format(name=name)
    path = Path(name)
    return _folder(path, what) if name and path.is_dir() else None


def _kind_of(path: Path) -> str | None:
    """The kind of a file by its keys; None if they tell nothing."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    keys = content.keys() if isinstance(content, dict) else set()
    return next((kind for kind, marks in MARKS.items() if keys & marks), None)


def _folder(path: Path, what: str) -> str:
    """What a folder is, with the recipe of a run."""
    if is_run_config(path / CONFIG):
        return "the folder of a run" + (f"; its recipe is {path / CONFIG}" if what == "recipe" else "")
    if (runs := runs_of_seeds(path)) != [str(path)]:
        return "the folder of several runs" + (
            f"; the recipe of one is {Path(runs[0]) / CONFIG}" if what == "recipe" else ""
        )
    if (path / MANIFEST).is_file():
        return "a folder of data" + (
            f"; a recipe names it as data.sources=[{{path: {path}}}]" if what == "recipe" else ""
        )
    return f"a folder; give a YAML file, or the name of one in {Path('configs', FOLDERS[what])}/"
