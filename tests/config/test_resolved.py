"""What `load` returns: sources of every leaf, rows, and YAML that loads to the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sleeptrain.config import load
from sleeptrain.config.tree import dump

M = "model: {width: 8}\n"


def test_every_leaf_has_a_source(read: Any) -> None:
    loaded = read(M, "sleep.passes={low: 1, high: 2}", "deepspeed.a.b=[1, 2]")
    rows = loaded.rows()
    assert [row[0] for row in rows] == [
        "model.width", "model.name", "sleep.window", "sleep.passes.low", "sleep.passes.high", "sleep.horizon", "sleep.loop.layers",
        "sleep.loop.feedback", "data.sources.0.path", "data.sources.0.share", "data.lanes", "data.ratios", "optim.lr", "optim.mode",
        "train.steps", "train.seed", "extra", "run_dir", "deepspeed.a.b",
    ]  # fmt: skip
    assert rows[0] == ("model.width", 8, "a.yaml:1") and rows[-1] == ("deepspeed.a.b", [1, 2], "command line")
    assert loaded.sources == {path: source for path, _, source in rows}
    assert loaded.at("sleep.passes.low") == "sleep.passes.low = 1 (command line)"
    assert loaded.at("data.sources.0.path") == 'data.sources.0.path = "here" (default)'


def test_yaml_says_where_values_come_from(read: Any) -> None:
    lines = read(M, "optim.lr=2", "optim.mode=off", "data.sources=[{path: x}]").to_yaml().splitlines()
    told = {tuple(part.strip() for part in line.split("  # ")) for line in lines if "  # " in line}
    assert {
        ("width: 8", "a.yaml:1"),
        ("lr: 2.0", "command line"),
        ("mode: 'off'", "command line"),
        ("seed: 0", "default"),
    } <= told
    assert ("- path: x", "command line") in told and ("share: 1.0", "default") in told
    columns = {line.index("  # ") for line in lines if "  # " in line}
    assert len(columns) == 1


TEXTS = [
    "",
    " ",
    "null",
    "yes",
    "1e3",
    "12:30",
    "a: b",
    "# no",
    "${x}",
    "a\\${b}",
    "\\\\${c}",
    "'",
    '"',
    "[",
    "é\n\tz",
    "- x",
    "~",
    "=",
    "<<",
]


@pytest.mark.parametrize("text", TEXTS)
def test_awkward_text_survives(read: Any, sections: dict[str, type], tmp_path: Path, text: str) -> None:
    first = read(M)
    value = sections["Recipe"](sections["Model"](8, text), deepspeed={text: [text, {text: [{"deep": text}]}]})
    _same(type(first)(value, {}), tmp_path, sections["Recipe"])


names = st.text(alphabet="ab.${}:# -\\'\"", max_size=6)
free = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lr=st.floats(allow_nan=False, allow_infinity=False),
    width=st.integers(),
    name=names,
    content=st.dictionaries(names, free, max_size=3),
)
def test_round_trip(
    read: Any, sections: dict[str, type], tmp_path: Path, lr: float, width: int, name: str, content: dict[str, Any]
) -> None:
    sleep = sections["Sleep"](passes=sections["Draw"](1, 2), loop=sections["Loop"](layers=(0, 3)))
    value = sections["Recipe"](
        sections["Model"](width, name),
        sleep=sleep,
        data=sections["Data"](sources=(sections["Source"](name, lr), sections["Source"]("b"))),
        optim=sections["Optim"](lr),
        extra=sections["Optim"](lr),
        deepspeed=content,
    )
    _same(type(read(M))(value, {}), tmp_path, sections["Recipe"])


def _same(resolved: Any, folder: Path, kind: type) -> None:
    (folder / "again.yaml").write_text(resolved.to_yaml())
    assert load(str(folder / "again.yaml"), [], kind, root=folder).value == resolved.value


def test_values_of_the_command_line_can_be_written_back(read: Any) -> None:
    first = read(
        M, "data.sources=[{path: x, share: 0.25}]", "sleep.loop.layers=[1, 2]", "deepspeed={a: [1, 2], b: {c: off}}"
    )
    again = read(M, *(f"{path}={dump(value)}" for path, value, _ in first.rows()))
    assert again.value == first.value
