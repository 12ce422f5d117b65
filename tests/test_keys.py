"""The documents of keys and of the first hour: current, whole, and with commands that exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def keys() -> ModuleType:
    """docs/keys.py as a module."""
    spec = importlib.util.spec_from_file_location("docs_keys", DOCS / "keys.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_page_of_keys_matches_the_classes(keys: ModuleType) -> None:
    assert (DOCS / "keys.md").read_text() == keys.page(), "regenerate it: python docs/keys.py > docs/keys.md"


def test_every_leaf_of_a_recipe_is_on_the_page() -> None:
    """The leaves as `train --explain` prints them."""
    from sleeptrain.recipe import load_recipe

    page = (DOCS / "keys.md").read_text()
    for recipe in ("rule110-tiny", "hybrid-1b"):
        leaves = [path for path, _, _ in load_recipe(recipe).rows()]
        assert len(leaves) > 80
        assert not [path for path in leaves if f"| `{path}` |" not in page]


def test_every_key_has_a_meaning_and_every_number_a_unit(keys: ModuleType) -> None:
    every = [key for schema in (keys.Recipe, keys.Study) for _, _, found in keys.sections(schema) for key in found]
    assert not [key.path for key in every if not key.meaning]
    numeric = {key.path for key in every if key.numeric}
    assert numeric == set(keys.UNITS), "a unit for every key that takes numbers, and no other"


def test_the_commands_of_the_first_hour_exist() -> None:
    """Each is parsed; those of the help texts run in tests/cli/test_examples.py."""
    from sleeptrain.cli.main import parse

    blocks = re.findall(r"```shell\n(.*?)```", (DOCS / "first-hour.md").read_text(), re.DOTALL)
    lines = [line for line in "".join(blocks).splitlines() if line.startswith("sleeptrain ")]
    assert len(lines) > 8
    for line in lines:
        assert callable(parse(shlex.split(line)[1:]).run), line
