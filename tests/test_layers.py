"""The contract of the layers: who may import whom, what independent and pure packages may import, and the picture of it."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from tests.sources import ROOT, layers, name_of

FILES = layers.package_files(ROOT)
DEPENDENCIES = layers.dependencies(ROOT)
EXTERNAL = {
    "sleep_kernels": {"torch", "triton"},
    "sleep_data": {"numpy", "streaming", "tokenizers", "torch", "filelock", "yaml", "pyarrow", "zstandard", "megatron"},
    "sleep_launch": set(),
}
"""Other projects that an independent package may import."""
PURE = {
    "config": {"yaml", "omegaconf", "pydantic"},
    "program": set(),
    "schedule": set(),
    "errors": set(),
    "sizes": set(),
}
"""Packages without torch, and the other projects that each may import."""


def tops(package: str) -> set[str]:
    """Top-level names that a package imports, without itself and the standard library."""
    names = {entry.name.partition(".")[0] for path in FILES[package] for entry in layers.imports(path)}
    return names - set(sys.stdlib_module_names) - {package}


def circle(graph: dict[str, dict[str, list[object]]]) -> list[str]:
    """The packages of a circle of imports, or an empty list."""
    done: set[str] = set()

    def search(package: str, path: list[str]) -> list[str]:
        if package in path:
            return [*path[path.index(package) :], package]
        if package in done:
            return []
        for target in graph[package]:
            if found := search(target, [*path, package]):
                return found
        done.add(package)
        return []

    return next((found for package in graph if (found := search(package, []))), [])


def test_every_package_has_exactly_one_layer() -> None:
    table = [name for packages in layers.LAYERS.values() for name in packages]
    assert len(table) == len(set(table))
    assert set(FILES) - set(layers.INDEPENDENT) <= set(table)
    assert sorted(layers.LAYERS) == list(range(11))
    assert all(FILES[name] for name in layers.INDEPENDENT)


@pytest.mark.parametrize("package", FILES)
def test_no_package_imports_a_higher_layer(package: str) -> None:
    """Imports inside functions count."""
    layer = layers.layer_of(package)
    upward = [
        entry
        for target, entries in DEPENDENCIES[package].items()
        if layers.layer_of(target) > layer
        for entry in entries
    ]
    assert not upward, upward


def test_no_circle_between_packages() -> None:
    assert not circle(DEPENDENCIES)


@pytest.mark.parametrize("path", [path for files in FILES.values() for path in files], ids=name_of)
def test_imports_are_absolute(path: Path) -> None:
    assert not [entry for entry in layers.imports(path) if entry.name.startswith(".")]


def test_the_root_names_packages_for_type_checkers_only() -> None:
    """Its public names are imported when they are used; tests/test_library.py checks that importing it imports nothing."""
    tree = ast.parse((ROOT / "sleeptrain" / "__init__.py").read_text())
    imported = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert imported == {"importlib", "typing"} and not any(isinstance(node, ast.Import) for node in tree.body)


@pytest.mark.parametrize("package", layers.INDEPENDENT)
def test_independent_packages_import_nothing_of_sleeptrain(package: str) -> None:
    assert not DEPENDENCIES[package]
    assert tops(package) <= EXTERNAL[package]


@pytest.mark.parametrize("package", PURE)
def test_pure_packages_import_no_torch(package: str) -> None:
    assert tops(package) <= PURE[package] | {"sleeptrain"}
    assert set(DEPENDENCIES[package]) <= set(PURE)


def test_imports_inside_functions_and_by_name_are_found(tmp_path: Path) -> None:
    file = tmp_path / "sleeptrain" / "program" / "late.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "import sleeptrain.train.loop\n\n\ndef f(name):\n    from sleeptrain import checkpoint\n"
        "    importlib.import_module(f'sleeptrain.cli.{name}')\n    from sleeptrain import __version__\n"
    )
    found = {(layers.package_of(entry.name), entry.line) for entry in layers.imports(file, tmp_path)}
    assert found == {("train", 1), ("checkpoint", 5), ("cli", 6), (None, 7)}
    assert layers.dependencies(tmp_path)["program"].keys() == {"train", "checkpoint", "cli"}


def test_circles_are_found() -> None:
    assert circle({"a": {"b": []}, "b": {"c": []}, "c": {"b": []}}) == ["b", "c", "b"]
    assert circle({"a": {"b": [], "c": []}, "b": {"c": []}, "c": {}}) == []


def test_a_package_without_a_layer_is_named() -> None:
    with pytest.raises(KeyError, match="nowhere has no layer"):
        layers.layer_of("nowhere")


def test_the_committed_picture_is_that_of_the_sources() -> None:
    drawn = (ROOT / "docs" / "layers.svg").read_text()
    assert drawn == layers.draw(ROOT), "draw it again: make layers"
