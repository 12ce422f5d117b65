"""Rules between sections are asked when their fields are good, and reported with all other errors."""

from __future__ import annotations

from typing import Any

import pytest

from sleeptrain.config import Rule, check

M = "model: {width: 8}\n"
RULES = (
    Rule(
        "wide",
        ("model.width", "sleep.window"),
        lambda r: r.model.width > r.sleep.window,
        "wider than long",
        "widen sleep.window",
    ),
    Rule(
        "steps",
        ("train.steps",),
        lambda r: (r.train.steps or 0) % 2 == 1,
        lambda r: f"{r.train.steps} is odd",
        "take an even number",
    ),
    Rule(
        "loop",
        ("sleep.loop",),
        lambda r: r.sleep.loop.layers != "all" and r.sleep.loop.layers[1] > r.model.width,
        "too far",
        "end earlier",
    ),
)


def test_all_rules_that_hold_are_silent(read: Any) -> None:
    loaded = read(M, rules=RULES)
    assert check(RULES, loaded) == []


def test_broken_rules_show_the_values_and_their_sources(errors: Any) -> None:
    assert errors(M, "sleep.window=4", "train.steps=3", rules=RULES) == [
        "model.width = 8 (a.yaml:1) with sleep.window = 4 (command line): wider than long; widen sleep.window",
        "train.steps = 3 (command line): 3 is odd; take an even number",
    ]


def test_rules_are_told_with_other_errors_unless_their_fields_are_bad(errors: Any) -> None:
    found = errors(M, "sleep.window=x", "train.steps=3", "optim.lr=x", rules=RULES)
    assert found == [
        'sleep.window = "x" (command line): expected a whole number',
        'optim.lr = "x" (command line): expected a number',
        "train.steps = 3 (command line): 3 is odd; take an even number",
    ]
    assert errors(M, "sleep.window=0", rules=RULES) == ["sleep.window = 0 (command line): must be at least 1 token"]
    assert errors("", "train.steps=4", "sleep.loop.layers=[0, 99]", rules=RULES) == [
        "model.width: missing; expected a whole number"
    ]


def test_a_rule_that_fails_by_itself_is_the_programmers_mistake(read: Any) -> None:
    rule = Rule("bug", ("train.seed",), lambda r: r.train.nothing, "?", "?")
    with pytest.raises(AttributeError):
        read(M, rules=[rule])
