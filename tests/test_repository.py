"""The repository: what importing costs, no module-level state, links that resolve, no paths of one machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sources import FILES, PRODUCT, ROOT, name_of

HEAVY = {"deepspeed", "megatron", "triton", "streaming", "wandb", "transformers", "matplotlib", "torchvision", "tokenizers"}  # fmt: skip


def test_importing_the_program_imports_no_heavy_package() -> None:
    code = "import sys, sleeptrain, sleeptrain.cli.main, sleep_launch, sleep_data; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not (HEAVY | {"torch", "numpy"}) & set(done.stdout.split())


def test_heavy_packages_are_imported_where_they_are_used() -> None:
    """Recipe, training loop, evaluation and inference can be imported without any of them."""
    code = "import sys, sleeptrain.recipe.recipe, sleeptrain.train.loop, sleeptrain.evaluate.runs, sleeptrain.inference; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_has_a_docstring_and_no_mutable_state(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "the first line names the subject"
    assert text.removeprefix("#!/usr/bin/env python3\n").startswith('"""')
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Global)]
    if path in PRODUCT:
        assert not list(mutable(tree)), "module-level values are constants"


def mutable(tree: ast.Module) -> Iterator[str]:
    """Module-level names that are empty containers or counters, or that the file changes.

    A non-empty dict or list display is a constant if its file does not write to it.
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


def test_links_in_documents_resolve() -> None:
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


def test_no_file_names_a_path_of_one_machine() -> None:
    found = subprocess.run(
        ["git", "-C", str(ROOT), "grep", "-nIE", r"/(work|home|root|tmp)/[a-z]", "--", ":!tests", ":!LICENSE"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode in (0, 1), found.stderr
    assert not found.stdout, found.stdout


def test_make_commands_in_documents_are_targets() -> None:
    targets = set(re.findall(r"(?m)^([\w-]+):(?!=)", (ROOT / "Makefile").read_text()))
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / ".ci" / "run"):
        named = [
            word
            for line in re.findall(r"(?m)(?:^|`) *make ([\w -]+)", path.read_text())
            for word in line.split("  ")[0].split()
            if not word.startswith("-")
        ]
        assert named and set(named) <= targets | {"WORKERS", "PYTHON"}, name_of(path)
