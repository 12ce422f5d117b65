"""Scalars read as written, and text that is written so that it is read as text."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sleeptrain.config.files import read_yaml
from sleeptrain.config.scalars import read_plain
from sleeptrain.config.tree import dump, plain


def value(text: str) -> Any:
    return plain(read_yaml(text, lambda mark: "x"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-3", 0.001), ("1e3", 1000.0), ("1E+3", 1000.0), (".5", 0.5), ("-2.", -2.0), ("1_000", 1000), ("1_000.5", 1000.5), ("+3", 3),
        ("0x1F", 31), ("010", 10), ("yes", True), ("No", False), ("true", True), ("off", "off"), ("on", "on"), ("y", "y"),
        ("12:30:00", "12:30:00"), ("2024-01-01", "2024-01-01"), ("null", None), ("~", None), ("", None), ("'1'", "1"),
        ("[1, {a: b}]", [1, {"a": "b"}]), ("1.2.3", "1.2.3"), ("e5", "e5"), (".inf", math.inf), ("-.inf", -math.inf), ("!!str 5", "5"),
    ],
)  # fmt: skip
def test_values(text: str, expected: Any) -> None:
    assert value(text) == expected and type(value(text)) is type(expected)
    if not text.startswith(("'", "[", "!")):
        assert read_plain(text) == expected


def test_nan() -> None:
    assert math.isnan(value(".nan"))


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, derandomize=True)
@given(plain_values)
def test_what_is_written_is_read(content: Any) -> None:
    text = dump(content)
    assert "\n" not in text
    assert value(text) == content


@settings(deadline=None, derandomize=True)
@given(st.text(alphabet="0123456789.eE+-_:xonyfNOY~ #'{}", max_size=8))
def test_other_readers_of_yaml_see_text_where_we_do(content: str) -> None:
    assert yaml.safe_load(dump(content)) == content
