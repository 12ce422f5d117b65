"""Rules between values are asked when their fields are right by themselves, and reported with what sections refuse."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from sleeptrain.config import Problem, Resolved, load
from sleeptrain.errors import UserError
from sleeptrain.recipe.rule import Rule, check


@dataclass(frozen=True)
class Model:
    width: int = 8
    layers: int = 4

    def problems(self) -> list[Problem]:
        return [Problem("layers", "must be at least 1")] if self.layers < 1 else []


@dataclass(frozen=True)
class Recipe:
    model: Model = field(default_factory=Model)
    window: int = 16
    steps: int = 2


RULES: tuple[Rule[Recipe], ...] = (
    Rule("wide", ("model.width", "window"), lambda r: r.model.width > r.window, "wider than long", "widen window"),
    Rule("steps", ("steps",), lambda r: r.steps % 2 == 1, lambda r: f"{r.steps} is odd", "take an even number"),
    Rule("deep", ("model.layers",), lambda r: 8 % r.model.layers > 0, "does not divide", "use 2 or 4"),
    Rule("careless", ("steps",), lambda r: 8 % r.model.layers == r.steps, "looks at layers too", "?"),
)


def read(folder: Path, *overrides: str, rules: tuple[Rule[Recipe], ...] = RULES) -> Resolved[Recipe]:
    (folder / "a.yaml").write_text("model: {width: 8}\n")
    return load("a", overrides, Recipe, check=partial(check, rules), root=folder)


def errors(folder: Path, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        read(folder, *overrides)
    return caught.value.errors


def test_rules_that_hold_are_silent(tmp_path: Path) -> None:
    assert check(RULES, read(tmp_path)) == []


def test_broken_rules_show_the_values_and_their_sources(tmp_path: Path) -> None:
    assert errors(tmp_path, "window=4", "steps=3") == [
        "model.width = 8 (a.yaml:1) with window = 4 (command line): wider than long; widen window",
        "steps = 3 (command line): 3 is odd; take an even number",
    ]


def test_rules_about_refused_values_wait_and_the_others_are_reported(tmp_path: Path) -> None:
    assert errors(tmp_path, "model.layers=0", "steps=3") == [
        "model.layers = 0 (command line): must be at least 1",
        "steps = 3 (command line): 3 is odd; take an even number",
    ]


def test_no_rule_is_asked_before_all_types_are_right(tmp_path: Path) -> None:
    assert errors(tmp_path, "window=x", "steps=3") == ['window = "x" (command line): expected a whole number']


def test_a_rule_that_fails_by_itself_is_the_programmers_mistake(tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        read(tmp_path, rules=(Rule("bug", ("steps",), lambda r: r.nothing, "?", "?"),))  # type: ignore[attr-defined]
