#!/usr/bin/env python3
"""Draws the layers of sleeptrain and who imports whom, from the sources: `python docs/layers.py` writes docs/layers.svg.

`LAYERS` is the contract that tests/test_layers.py checks. Needs the standard library only.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAYERS: dict[int, dict[str, str]] = {
    10: {"__main__": "python -m sleeptrain"},
    9: {"cli": "a module per command", "study": "grids of runs, and their reports"},
    8: {
        "evaluate": "accuracy by label, retention, reports",
        "convert": "export and import of other formats",
        "plan": "memory, FLOPs and traffic of a recipe, before it runs",
        "serve": "completions over HTTP, with sessions that sleep",
    },
    7: {"recipe": "all sections of a recipe, and the rules across them"},
    6: {"train": "the training loop, its setup and its log", "inference": "sessions that generate tokens"},
    5: {"run": "the life of a run: stop requests, exit status"},
    4: {"checkpoint": "saving and loading checkpoints"},
    3: {"engine": "DeepSpeed behind one class; optimizers"},
    2: {
        "execute": "a schedule, executed on one process",
        "parallel": "a model, divided over processes",
        "data": "shards, read as batches",
    },
    1: {
        "model": "blocks, state, sleep",
        "schedule": "actions of every stage: build, check, estimate, draw",
    },
    0: {
        "program": "the passes over the windows of a sample",
        "config": "YAML recipes with sources and types",
        "errors": "the two errors without a stack trace",
        "sizes": "numbers of bytes with their unit",
    },
}
"""Packages of `sleeptrain` and their subjects by layer; some do not exist yet. A package may import packages of lower layers, and
packages of its own layer without circles."""
INDEPENDENT = {
    "sleep_kernels": ("kernels", "operators of the fast weights"),
    "sleep_data": ("data_pipelines", "tasks and text as MDS shards"),
    "sleep_launch": ("launch", "launchers of processes"),
}
"""Packages that import nothing of `sleeptrain`: the folder that holds each, and its subject."""


@dataclass(frozen=True)
class Import:
    """`file` (relative to the repository) imports `name` in `line`."""

    file: str
    line: int
    name: str


def package_files(root: Path) -> dict[str, list[Path]]:
    """Python files by package, for every package of `sleeptrain` and the independent ones."""
    files: dict[str, list[Path]] = {}
    for path in sorted((root / "sleeptrain").rglob("*.py")):
        package = path.relative_to(root / "sleeptrain").parts[0].removesuffix(".py")
        if package != "__init__":
            files.setdefault(package, []).append(path)
    for package, (folder, _) in INDEPENDENT.items():
        files[package] = sorted((root / folder / package).rglob("*.py"))
    return files


def imports(path: Path, root: Path = ROOT) -> Iterator[Import]:
    """Every import in a file, also in functions and by `import_module`; `from a import b` counts as `a.b`."""
    for node in ast.walk(ast.parse(path.read_text())):
        for name in _imported(node):
            yield Import(path.relative_to(root).as_posix(), getattr(node, "lineno", 0), name)


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
        name = node.args[0]
        text = name.values[0] if isinstance(name, ast.JoinedStr) else name
        if isinstance(text, ast.Constant):
            yield str(text.value)


def package_of(name: str) -> str | None:
    """The package of a dotted module name, or None for other projects and for `sleeptrain` itself (its version)."""
    top, _, rest = name.partition(".")
    if top in INDEPENDENT:
        return top
    package = rest.partition(".")[0]
    return package if top == "sleeptrain" and package not in ("", "__version__") else None


def layer_of(package: str) -> int:
    """The layer of a package, 0 for independent ones. Raises KeyError for a package that is not in the table."""
    if package in INDEPENDENT:
        return 0
    for layer, packages in LAYERS.items():
        if package in packages:
            return layer
    raise KeyError(f"{package} has no layer; add it to LAYERS in docs/layers.py")


def dependencies(root: Path) -> dict[str, dict[str, list[Import]]]:
    """For every package: the imports of every other package."""
    found: dict[str, dict[str, list[Import]]] = {}
    for package, files in package_files(root).items():
        found[package] = {}
        for path in files:
            for entry in imports(path, root):
                target = package_of(entry.name)
                if target not in (None, package):
                    found[package].setdefault(str(target), []).append(entry)
    return found


WIDTH, MARGIN, LABEL = 1040, 24, 48
ROW, BOX, STEP = 62, 174, 186
CELL, NAMES, HEADS = 36, 160, 112

COLOURS = {
    "page": ("fill", "#ffffff", "#0d1117"),
    "band": ("fill", "#f3f5f8", "#161b22"),
    "text": ("fill", "#1f2933", "#e6edf3"),
    "soft": ("fill", "#52606d", "#a5afba"),
    "box": ("fill", "#ffffff", "#0d1117"),
    "rim": ("stroke", "#9aa5b1", "#6e7681"),
    "grid": ("stroke", "#dfe4ea", "#2a313a"),
    "self": ("fill", "#dfe4ea", "#2a313a"),
    "lower": ("fill", "#cfe3f7", "#1f4568"),
    "same": ("fill", "#fbe3b4", "#6a4d10"),
    "higher": ("fill", "#f5b5b0", "#8c2f28"),
}
"""Property and colour on a light and on a dark page, by class."""


def _style() -> str:
    light = " ".join(f".{name} {{ {key}: {colour}; }}" for name, (key, colour, _) in COLOURS.items())
    dark = " ".join(f".{name} {{ {key}: {colour}; }}" for name, (key, _, colour) in COLOURS.items())
    fonts = "text { font: 14px Helvetica, Arial, sans-serif; } .title { font-size: 18px; font-weight: bold; } .name { font-weight: bold; }"
    return f"{fonts} .leaf {{ stroke-dasharray: 5 3; }}\n{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}"


def draw(root: Path) -> str:
    """The picture as SVG: a row of boxes per layer, and a matrix of who imports whom."""
    files = package_files(root)
    order = sorted(files, key=lambda name: (-layer_of(name), name in INDEPENDENT, _place(name)))
    boxes, end = _boxes(files, 78)
    matrix, height = _matrix(order, dependencies(root), end + 52)
    body = "\n".join([*boxes, *matrix])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}">\n'
        "<!-- written by docs/layers.py -->\n"
        f'<style>{_style()}</style>\n<rect class="page" width="{WIDTH}" height="{height}"/>\n{body}\n</svg>\n'
    )


def _place(package: str) -> int:
    names = (*(name for packages in LAYERS.values() for name in packages), *INDEPENDENT)
    return names.index(package)


def _boxes(files: dict[str, list[Path]], top: int) -> tuple[list[str], int]:
    """The rows of layers from `top` on, and where they end. The independent packages have the last row."""
    subjects = {name: about for packages in LAYERS.values() for name, about in packages.items()}
    subjects |= {name: about for name, (_, about) in INDEPENDENT.items()}
    rows = [(layer, [n for n in LAYERS[layer] if n in files]) for layer in sorted(LAYERS, reverse=True)]
    parts = [
        _text(MARGIN, 34, "Layers", "text title"),
        _text(MARGIN, 58, "A package imports packages of lower layers, and of its own layer without circles. Lines are rounded to hundreds.", "soft"),
    ]  # fmt: skip
    for row, (layer, packages) in enumerate([*rows, (0, list(INDEPENDENT))]):
        y = top + row * ROW
        if row % 2 == 0:
            parts.append(f'<rect class="band" x="{MARGIN}" y="{y}" width="{WIDTH - 2 * MARGIN}" height="{ROW}"/>')
        parts.append(_text(MARGIN + 24, y + ROW // 2 + 5, str(layer), "soft", "middle"))
        for column, package in enumerate(packages):
            x = MARGIN + LABEL + column * STEP
            style = "box rim leaf" if package in INDEPENDENT else "box rim"
            parts.append(f'<rect class="{style}" x="{x}" y="{y + 6}" width="{BOX}" height="{ROW - 12}" rx="6"/>')
            parts.append(_text(x + BOX // 2, y + 27, package, "text name", "middle"))
            parts.append(_text(x + BOX // 2, y + 46, _size(files[package]), "soft", "middle"))
            line = y + ROW // 2 + 5 + 18 * column - 9 * (len(packages) - 1)
            words = f"{package}: {subjects[package]}" if len(packages) > 1 else subjects[package]
            parts.append(_text(MARGIN + LABEL + len(packages) * STEP + 8, line, words, "soft"))
    return parts, top + (len(rows) + 1) * ROW


def _size(files: list[Path]) -> str:
    lines = sum(len(path.read_text().splitlines()) for path in files)
    rounded = f"{round(lines, -2):,}" if lines >= 50 else "under 50"
    return f"{len(files)} file{'s' * (len(files) > 1)}, {rounded} lines"


def _matrix(order: list[str], found: dict[str, dict[str, list[Import]]], top: int) -> tuple[list[str], int]:
    """Rows import columns; a cell has the number of importing files. Returns the height of the picture too."""
    left, first, size = MARGIN + NAMES, top + 44 + HEADS, CELL * len(order)
    parts = [
        _text(MARGIN, top, "Who imports whom", "text title"),
        _text(
            MARGIN, top + 24, "The number of files of the package on the left that import the package above.", "soft"
        ),
    ]
    for i, package in enumerate(order):
        x = y = i * CELL
        parts.append(_text(left - 34, first + y + 23, package, anchor="end"))
        parts.append(_text(left - 8, first + y + 23, str(layer_of(package)), "soft", "end"))
        turn = f'transform="translate({left + x + 23} {first - 10}) rotate(-90)"'
        parts.append(f'<text class="text" {turn}>{escape(package)}</text>')
        parts.append(f'<rect class="self" x="{left + x}" y="{first + y}" width="{CELL}" height="{CELL}"/>')
        for j, target in enumerate(order):
            if target in found[package]:
                count = len({entry.file for entry in found[package][target]})
                step = layer_of(target) - layer_of(package)
                kind = "lower" if step < 0 else "same" if step == 0 else "higher"
                parts.append(f'<rect class="{kind}" x="{left + j * CELL}" y="{first + y}" width="{CELL}" height="{CELL}"/>')  # fmt: skip
                parts.append(_text(left + j * CELL + CELL // 2, first + y + 23, str(count), anchor="middle"))
    for i in range(len(order) + 1):
        edge = i in (0, len(order)) or layer_of(order[i - 1]) != layer_of(order[i])
        kind, at = "rim" if edge else "grid", i * CELL
        parts.append(f'<path class="{kind}" d="M{left} {first + at}h{size}M{left + at} {first}v{size}"/>')
    y = first + size + 34
    for kind, x, words in (("lower", 0, "a lower layer"), ("same", 160, "the same layer"), ("higher", 328, "a higher layer: not allowed")):  # fmt: skip
        parts.append(f'<rect class="{kind}" x="{left + x}" y="{y - 15}" width="20" height="20"/>')
        parts.append(_text(left + x + 28, y, words, "soft"))
    return parts, y + 28


def _text(x: int, y: int, words: str, style: str = "text", anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" class="{style}" text-anchor="{anchor}">{escape(words)}</text>'


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the picture to a file."""
    parser = argparse.ArgumentParser(description="Draw the layers of sleeptrain and who imports whom.")
    parser.add_argument(
        "out", nargs="?", type=Path, default=ROOT / "docs" / "layers.svg", help="the picture's file (%(default)s)"
    )
    parser.parse_args(arguments).out.write_text(draw(ROOT))


if __name__ == "__main__":
    main()
