"""Values become the types of their fields, or errors that say what was expected."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sleeptrain.config import Problem, load
from sleeptrain.errors import UserError

M = "model: {width: 8}\n"


@pytest.mark.parametrize(
    ("override", "expected"),
    [("train.seed=1e3", 1000), ("train.seed=2_000", 2000), ("train.seed=3.0", 3), ("train.seed=-1", -1)],
)
def test_whole_numbers(read: Any, override: str, expected: int) -> None:
    seed = read(M, override).value.train.seed
    assert seed == expected and type(seed) is int


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("train.seed=1.5", "train.seed = 1.5 (command line): expected a whole number"),
        ("train.seed=1e-3", "train.seed = 1e-3 (command line): expected a whole number"),
        ("train.seed='5'", 'train.seed = "5" (command line): expected a whole number'),
        ("train.seed=1B", 'train.seed = "1B" (command line): expected a whole number; write 1e9 or 1_000_000_000'),
        ("train.seed=2.5m", 'train.seed = "2.5m" (command line): expected a whole number; write 2.5e6 or 2_500_000'),
        ("train.seed=1,000", 'train.seed = "1,000" (command line): expected a whole number; write 1000'),
        ("train.seed=1Q", 'train.seed = "1Q" (command line): expected a whole number'),
        ("train.seed=true", "train.seed = true (command line): expected a whole number"),
        ("train.seed=null", "train.seed = null (command line): expected a whole number"),
        ("train.seed=.inf", "train.seed = .inf (command line): expected a whole number"),
        ("train.steps=x", 'train.steps = "x" (command line): expected a whole number or null'),
        ("optim.lr=fast", 'optim.lr = "fast" (command line): expected a number'),
        ("optim.lr=.inf", "optim.lr = .inf (command line): expected a number"),
        ("optim.lr=.nan", "optim.lr = .nan (command line): expected a number"),
        ("optim.lr=1e999", "optim.lr = 1e999 (command line): expected a number"),
        ("optim.lr=true", "optim.lr = true (command line): expected a number"),
        ("optim.lr=[1]", "optim.lr = [1] (command line): expected a number"),
        ("optim.mode=onlin", 'optim.mode = "onlin" (command line): expected one of off, online; did you mean online?'),
        ("optim.mode=no", "optim.mode = no (command line): expected one of off, online"),
        ("data.lanes=1", "data.lanes = 1 (command line): expected true or false"),
        ("data.lanes=maybe", 'data.lanes = "maybe" (command line): expected true or false'),
        ("data.ratios=3", "data.ratios = 3 (command line): expected a list of a number"),
        ("data.ratios=[1, x]", 'data.ratios.1 = "x" (command line): expected a number'),
        ("data.sources=[x]", 'data.sources.0 = "x" (command line): expected {path, share}'),
        ("data.sources=[{share: 1}]", "data.sources.0.path: missing; expected text"),
        ("model.name=[a]", "model.name = [a] (command line): expected text"),
        ("model.name=null", "model.name = null (command line): expected text"),
        (
            "sleep.loop.layers=some",
            'sleep.loop.layers = "some" (command line): expected all or a list of a whole number',
        ),
        ("sleep.loop.layers=[1]", "sleep.loop.layers = [1] (command line): expected a list of 2"),
        ("sleep.horizon=al", 'sleep.horizon = "al" (command line): expected all or a whole number; did you mean all?'),
        ("deepspeed=3", "deepspeed = 3 (command line): expected a mapping"),
        ("sleep=null", "sleep = null (command line): expected {window, passes, horizon, loop}"),
    ],
)
def test_wrong_types(errors: Any, override: str, error: str) -> None:
    assert errors(M, override) == [error]


def test_plain_scalars_are_text_where_text_is_wanted(read: Any) -> None:
    value = read("model: {width: 8, name: 010}\nrun_dir: 2024-01-01\noptim: {mode: off}\n").value
    assert (value.model.name, value.run_dir, value.optim.mode) == ("010", "2024-01-01", "off")


def test_optional(read: Any, sections: dict[str, type]) -> None:
    assert read(M, "train.steps=5").value.train.steps == 5
    assert read(M + "train: {steps: 5}\n", "train.steps=null").value.train.steps is None
    assert read(M, "extra.lr=3").value.extra == sections["Optim"](lr=3.0)


def test_unions_of_scalars_and_lists(read: Any) -> None:
    assert read(M, "sleep.horizon=3").value.sleep.horizon == 3
    assert read(M, "sleep.horizon=all").value.sleep.horizon == "all"
    assert read(M, "sleep.loop.layers=[1, 3]").value.sleep.loop.layers == (1, 3)


def test_variants_are_chosen_by_their_keys(read: Any, errors: Any, sections: dict[str, type]) -> None:
    assert read(M, "sleep.passes={low: 1, high: 3}").value.sleep.passes == sections["Draw"](1, 3)
    assert read(M, "sleep.passes.start=1", "sleep.passes.stop=4").value.sleep.passes == sections["Ramp"](1, 4)
    assert read(M, "sleep.passes=5").value.sleep.passes == 5
    assert errors(M, "sleep.passes={a: 1}") == [
        "sleep.passes = {a: 1} (command line): expected a whole number, {start, stop, steps} or {low, high}"
    ]
    assert errors(M, "sleep.passes={low: 1, hgh: 3}") == [
        "sleep.passes.hgh = 3 (command line): unknown key; did you mean sleep.passes.high?",
        "sleep.passes.high: missing; expected a whole number",
    ]
    assert errors(M, "sleep.passes={low: 1, high: x}") == [
        'sleep.passes.high = "x" (command line): expected a whole number'
    ]


def test_a_newer_variant_leaves_the_older_ones_keys_behind(read: Any, sections: dict[str, type]) -> None:
    ramp = M + "sleep: {passes: {start: 1, stop: 4}}\n"
    assert read(ramp, "sleep.passes.low=1", "sleep.passes.high=3").value.sleep.passes == sections["Draw"](1, 3)
    assert read(ramp, "sleep.passes.stop=9").value.sleep.passes == sections["Ramp"](1, 9)
    assert read(ramp, "sleep.passes=2").value.sleep.passes == 2


def test_the_variant_of_the_newest_layer_is_meant_when_keys_are_missing_or_wrong(errors: Any) -> None:
    ramp = M + "sleep: {passes: {start: 1, stop: 4}}\n"
    assert errors(ramp, "sleep.passes.low=1") == ["sleep.passes.high: missing; expected a whole number"]
    assert errors(ramp, "sleep.passes.low=1", "sleep.passes.high=x") == [
        'sleep.passes.high = "x" (command line): expected a whole number'
    ]
    assert errors(ramp, "sleep.passes.stpo=9") == [
        "sleep.passes.stpo = 9 (command line): unknown key; did you mean sleep.passes.stop?"
    ]
    assert errors(M + "sleep: {passes: {start: 1, stop: x}}\n", "sleep.passes.steps=5") == [
        'sleep.passes.stop = "x" (a.yaml:2): expected a whole number'
    ]


def test_a_variant_between_two_others_leaves_the_first_behind(read: Any, errors: Any) -> None:
    files = {"b.yaml": "sleep: {passes: {low: 1, high: 9}}\n"}
    text = "include: b.yaml\n" + M + "sleep: {passes: {start: 1, stop: 4}}\n"
    assert errors(text, "sleep.passes.low=2", files=files) == ["sleep.passes.high: missing; expected a whole number"]
    loaded = read(text, "sleep.passes={low: 2, high: 3}", files=files)
    assert loaded.rows()[3:5] == [("sleep.passes.low", 2, "command line"), ("sleep.passes.high", 3, "command line")]


def test_a_list_where_a_mapping_was_and_the_reverse(read: Any, errors: Any) -> None:
    assert errors(M + "optim: [1]\ndata: {ratios: {a: 1}}\n") == [
        "data.ratios = {a: 1} (a.yaml:3): expected a list of a number",
        "optim = [1] (a.yaml:2): expected {lr, mode}",
    ]
    free = read(M + "deepspeed: {a: {b: 1}, c: [1]}\n", "deepspeed.a=[1]", "deepspeed.c={d: 2}").value.deepspeed
    assert free == {"a": [1], "c": {"d": 2}}
    assert read(M, "model.name='???'").value.model.name == "???", "no marker of OmegaConf's"


def test_every_error_of_a_list_of_sections_is_told(errors: Any) -> None:
    assert errors(M + "data:\n  sources:\n    - {path: x, share: a}\n    - 3\n    - {pth: 1}\n") == [
        'data.sources.0.share = "a" (a.yaml:4): expected a number',
        "data.sources.1 = 3 (a.yaml:5): expected {path, share}",
        "data.sources.2.pth = 1 (a.yaml:6): unknown key; did you mean data.sources.2.path?",
        "data.sources.2.path: missing; expected text",
    ]


def test_a_section_that_may_be_absent_tells_its_errors(errors: Any) -> None:
    assert errors(M, "extra={lr: x, mod: off}") == [
        'extra.mod = "off" (command line): unknown key; did you mean extra.mode?',
        'extra.lr = "x" (command line): expected a number',
    ]
    assert errors(M, "extra=3") == ["extra = 3 (command line): expected {lr, mode} or null"]


def test_a_section_given_in_part_keeps_its_own_default(read: Any) -> None:
    assert read(M, "sleep.loop.layers=[0, 2]").value.sleep.loop.feedback == "normed"


def test_problems_of_sections_have_value_and_source(errors: Any) -> None:
    found = errors("model: {width: 8}\nsleep:\n  window: 0\n", "sleep.loop.layers=[3, 1]", "train.seed=x")
    assert found == [
        "sleep.window = 0 (a.yaml:3): must be at least 1 token",
        "sleep.loop.layers = [3, 1] (command line): must be an ascending range",
        'train.seed = "x" (command line): expected a whole number',
    ]
    assert errors("model: {width: 8}\nsleep: {window: 13}\n") == ["sleep (a.yaml:2): is unlucky"]


@dataclass(frozen=True)
class Near:
    distance: float


@dataclass(frozen=True)
class Far:
    miles: int
    at: float = 1.0


@dataclass(frozen=True)
class Places:
    any: list[Near | Far | int] = field(default_factory=list)
    named: dict[str, Near] = field(default_factory=dict)
    pair: tuple[int, str] = (1, "a")
    free: Near | dict[str, Any] | None = None
    default: Near | Far = Far(2)


def test_lists_of_unions_mappings_of_sections_and_pairs(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text(
        "any: [{distance: 1}, {miles: 2.0}, 3]\nnamed: {a: {distance: 2}}\npair: [1e1, 010]\nfree: {distance: 3}\n"
    )
    loaded = load("w", ["default.distance=4"], Places, root=tmp_path)
    assert loaded.value == Places([Near(1.0), Far(2), 3], {"a": Near(2.0)}, (10, "010"), Near(3.0), Near(4.0))
    assert loaded.sources["any.1.miles"] == "w.yaml:1" and loaded.sources["any.1.at"] == "default"
    assert load("w", ["default.at=3"], Places, root=tmp_path).value.default == Far(2, 3.0)


def test_errors_in_lists_of_unions_and_mappings_of_sections(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text("any:\n  - {distance: x}\n  - {miles: 1.5, aat: 1}\n  - true\n  - {far: 1}\n")
    with pytest.raises(UserError) as caught:
        load("w", ["named={a: {distanc: 1}}", "pair=[x, 1, 2]"], Places, root=tmp_path)
    assert caught.value.errors == [
        'any.0.distance = "x" (w.yaml:2): expected a number',
        "any.1.aat = 1 (w.yaml:3): unknown key; did you mean any.1.at?",
        "any.1.miles = 1.5 (w.yaml:3): expected a whole number",
        "any.2 = true (w.yaml:4): expected {distance}, {miles, at} or a whole number",
        "any.3 = {far: 1} (w.yaml:5): expected {distance}, {miles, at} or a whole number",
        "named.a.distanc = 1 (command line): unknown key; did you mean named.a.distance?",
        "named.a.distance: missing; expected a number",
        'pair.0 = "x" (command line): expected a whole number',
    ]
    assert wrong(tmp_path, "pair=[1, a, b]", schema=Places) == ["pair = [1, a, b] (command line): expected a list of 2"]


@dataclass(frozen=True)
class Part:
    size: int = 0

    def __post_init__(self) -> None:
        if self.size > 9:
            raise ValueError("too large")

    def problems(self) -> list[Problem]:
        return [Problem("size", "must be positive")] if self.size < 1 else []


@dataclass(frozen=True)
class Whole:
    part: Part = field(default_factory=Part)
    parts: list[Part] = field(default_factory=list)
    made: str = field(default="", init=False)


def wrong(tmp_path: Path, *overrides: str, schema: type = Whole) -> list[str]:
    (tmp_path / "w.yaml").write_text("")
    with pytest.raises(UserError) as caught:
        load("w", list(overrides), schema, root=tmp_path)
    return caught.value.errors


def test_problems_of_defaults_of_elements_and_of_construction(tmp_path: Path) -> None:
    assert wrong(tmp_path) == ["part.size = 0 (default): must be positive"]
    assert wrong(tmp_path, "part.size=1", "parts=[{size: 2}, {size: -1}]") == [
        "parts.1.size = -1 (command line): must be positive"
    ]
    assert wrong(tmp_path, "part.size=1", "parts=[{size: -1}, {size: 11}, {size: x}]") == [
        "parts.0.size = -1 (command line): must be positive",
        "parts.1 (command line): too large",
        'parts.2.size = "x" (command line): expected a whole number',
    ]
    assert wrong(tmp_path, "part.size=11") == ["part (command line): too large"]
    assert wrong(tmp_path, "part.size=1", "made=x") == ['made = "x" (command line): unknown key']


def test_a_type_that_recipes_do_not_know_is_the_programmers_mistake(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Bad:
        numbers: set = field(default_factory=set)

    (tmp_path / "w.yaml").write_text("numbers: [1]\n")
    with pytest.raises(TypeError, match="recipes know int"):
        load("w", [], Bad, root=tmp_path)
