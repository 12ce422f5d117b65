"""The house: who may import whom, what importing costs, no hidden state, and links that lead somewhere."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (
    {"config"},
    {"program"},
    {"model"},
    {"parallel", "data"},
    {"engine"},
    {"checkpoint"},
    {"train", "inference"},
    {"rules"},
    {"recipe"},
    {"trained", "support"},
    {"evaluate", "plan"},
    {"cli"},
    {"__main__"},
)
"""The rooms of `sleeptrain`, from the ground up. (`program` takes from `config` how a problem is said.)"""
LEAVES = {"sleep_kernels": "kernels", "sleep_data": "data_pipelines", "sleep_launch": "launch"}
"""Packages that know nothing of sleeptrain, and the folders they stand in."""
EXTERNAL = {
    "sleep_kernels": {"torch", "triton"},
    "sleep_data": {"numpy", "streaming", "tokenizers", "torch", "torchvision", "filelock", "yaml", "pyarrow"},
    "sleep_launch": set(),
}
HEAVY = {"deepspeed", "megatron", "triton", "streaming", "wandb", "transformers", "matplotlib", "torchvision", "tokenizers"}  # fmt: skip
PURE = {"program", "config"}
"""Rooms without torch."""

SOURCES = [
    path
    for folder in (ROOT / "sleeptrain", *(ROOT / place / name for name, place in LEAVES.items()))
    for path in sorted(folder.rglob("*.py"))
]
FILES = [*SOURCES, *(p for folder in ("tests", "benchmarks") for p in sorted((ROOT / folder).rglob("*.py")))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(path: Path) -> str | None:
    """The room of a file of `sleeptrain`; None for its `__init__` and for other packages."""
    parts = path.relative_to(ROOT).parts
    room = parts[1].removesuffix(".py") if parts[0] == "sleeptrain" else "__init__"
    return None if room == "__init__" else room


def floor(room: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def imports(path: Path, everywhere: bool = True) -> Iterator[str]:
    """Dotted names of the modules that a file imports; those inside functions too if `everywhere`."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if everywhere else _outside_functions(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written out"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from _outside_functions(child)


def test_importing_is_quick() -> None:
    code = "import sys, sleeptrain, sleeptrain.cli.main, sleep_launch, sleep_data; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not (HEAVY | {"torch", "numpy"}) & set(done.stdout.split())


def test_heavy_packages_are_imported_where_they_are_used() -> None:
    """A recipe, its model and the loop can be imported without any of them."""
    code = "import sys, sleeptrain.recipe, sleeptrain.train.loop, sleeptrain.evaluate.runs, sleeptrain.inference; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())


@pytest.mark.parametrize("path", [path for path in SOURCES if room_of(path)], ids=name_of)
def test_a_room_imports_only_rooms_below_it(path: Path) -> None:
    room = room_of(path)
    assert room is not None
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top != "sleeptrain" or rest in ("", "__version__"):
            continue
        other = rest.split(".")[0]
        assert other == room or floor(other) < floor(room), f"{room} may not import {name}"


def test_every_room_has_a_floor() -> None:
    found = {path.stem for path in (ROOT / "sleeptrain").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}  # fmt: skip
    assert found - {"__init__"} == set.union(*FLOORS)


@pytest.mark.parametrize("package", LEAVES)
def test_leaves_know_nothing_of_the_house(package: str) -> None:
    for path in sorted((ROOT / LEAVES[package] / package).rglob("*.py")):
        tops = {name.partition(".")[0] for name in imports(path)}
        assert tops - set(sys.stdlib_module_names) - {package} <= EXTERNAL[package], name_of(path)


@pytest.mark.parametrize("room", sorted(PURE))
def test_programs_and_configuration_are_pure_python(room: str) -> None:
    for path in sorted((ROOT / "sleeptrain" / room).rglob("*.py")):
        tops = {name.partition(".")[0] for name in imports(path)}
        assert tops - set(sys.stdlib_module_names) <= {"sleeptrain", "yaml", "omegaconf", "pydantic"}, name_of(path)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_says_what_it_is_about_and_holds_no_state(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "the first line says the subject"
    assert text.startswith('"""')
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Global)]
    if path in SOURCES:
        assert not list(mutable(tree)), "module-level values stay as they are"


def mutable(tree: ast.Module) -> Iterator[str]:
    """Module-level names that are empty containers or counters, or are changed by what the file does.

    A table in a dict or list display is a constant as long as nothing in its file writes to it.
    """
    names = set()
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        value = getattr(node, "value", None)
        for target in targets:
            if not isinstance(target, ast.Name) or target.id == "__all__":
                continue
            names.add(target.id)
            empty = (isinstance(value, ast.Dict) and not value.keys) or (isinstance(value, ast.List) and not value.elts)
            made = isinstance(value, ast.Call) and ast.unparse(value.func) in {"dict", "list", "set", "deque", "defaultdict", "count"} and not value.args  # fmt: skip
            if empty or made:
                yield target.id
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del) and _is(node.value, names):
            yield ast.unparse(node.value)
        changes = {"append", "add", "update", "extend", "pop", "clear", "setdefault", "insert", "remove"}
        if isinstance(node, ast.Attribute) and node.attr in changes and _is(node.value, names):
            yield ast.unparse(node.value)


def _is(node: ast.expr, names: set[str]) -> bool:
    return isinstance(node, ast.Name) and node.id in names


def test_links_in_documents_lead_somewhere() -> None:
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    assert ROOT / "README.md" in documents
    for path in documents:
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
            if re.match(r"[a-z]+:", target) or target.startswith("#"):
                continue
            assert (path.parent / target.partition("#")[0]).exists(), f"{name_of(path)} links to {target}"


def test_the_readme_names_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    named = re.findall(r"`((?:sleeptrain|kernels|data_pipelines|launch|configs|tests|docs|benchmarks)/[\w/.-]+)`", text)
    assert named
    assert not [name for name in named if not (ROOT / name).exists()]


def test_nothing_in_the_repository_points_to_this_machine() -> None:
    found = subprocess.run(
        ["git", "-C", str(ROOT), "grep", "-nIE", r"/(work|home|root|tmp)/[a-z]", "--", ":!tests", ":!LICENSE"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode in (0, 1), found.stderr
    assert not found.stdout, found.stdout
