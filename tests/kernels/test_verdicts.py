"""Verdicts of the self-test: what they belong to, and where they are read and written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sleep_kernels import verdicts, verified
from sleep_kernels.verdicts import VerdictKey

ENTRY = next(e for e in verified.table() if (e["triton"], e["dtype"], e["d"]) == ("3.7.1", "bfloat16", 128))
KEY = VerdictKey.of(ENTRY, "13.0.88")


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package without verdicts and an empty cache folder."""
    monkeypatch.setattr(verdicts, "SHIPPED", tmp_path / "package.json")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_verdict_belongs_to_triton_assembler_and_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    assert verdicts.verdict(KEY) is None and not verdicts.right_somewhere("bfloat16", 128)
    verdicts.write(verdicts.cached(), KEY, True)
    assert verdicts.verdict(KEY) is True and verdicts.right_somewhere("bfloat16", 128)
    assert verdicts.verdict(VerdictKey.of(ENTRY, "12.8.93")) is None
    assert verdicts.verdict(VerdictKey.of(ENTRY | {"triton": "3.6.0"}, "13.0.88")) is None
    launches = {name: launch | {"warps": 2} for name, launch in ENTRY["launches"].items()}
    assert verdicts.verdict(VerdictKey.of(ENTRY | {"launches": launches}, "13.0.88")) is None
    assert not verdicts.right_somewhere("bfloat16", 64) and not verdicts.right_somewhere("float32", 128)
    monkeypatch.setattr(verdicts, "_kernels", lambda: "of changed files")
    assert verdicts.verdict(VerdictKey.of(ENTRY, "13.0.88")) is None and not verdicts.right_somewhere("bfloat16", 128)


def test_the_cache_counts_where_the_package_says_otherwise() -> None:
    verdicts.write(verdicts.SHIPPED, KEY, True)
    assert verdicts.verdict(KEY) is True
    verdicts.write(verdicts.cached(), KEY, False)
    assert verdicts.verdict(KEY) is False and not verdicts.right_somewhere("bfloat16", 128)


def test_a_file_keeps_verdicts_of_the_present_sources_alone() -> None:
    old, other = VerdictKey("3.7.1", "13.0.88", "sm_90", "bfloat16", 128, "old"), VerdictKey.of(ENTRY, "12.8.93")
    path = verdicts.cached()
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps([old.__dict__ | {"right": True}]))
    for key, right in ((KEY, True), (other, False), (KEY, False)):
        verdicts.write(path, key, right)
    assert verdicts._read(path) == {KEY: False, other: False} and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("content", ["", "{", "[1]", '[{"triton": "3.7.1"}]', '{"a": 1}'])
def test_a_broken_file_has_no_verdicts(content: str) -> None:
    verdicts.cached().parent.mkdir(parents=True)
    verdicts.cached().write_text(content)
    assert verdicts.verdict(KEY) is None
    verdicts.write(verdicts.cached(), KEY, True)
    assert verdicts.verdict(KEY) is True


def test_what_the_package_ships_is_read() -> None:
    shipped = Path(verdicts.__file__).with_name("verdicts.json")
    assert len(json.loads(shipped.read_text())) == len(verdicts._read(shipped))
