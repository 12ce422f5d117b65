"""The examples of every help text, and the README's commands, run in the order in which a reader meets them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.cli.lines import TINY, Line, run_lines

ROOT = Path(__file__).parents[2]
SAMPLES = ["train=256", "test=32"]
"""Added to the shipped builds, which else take seconds each."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("examples")
    (made / "documents").mkdir()
    for i in range(24):
        (made / "documents" / f"{i}.py").write_text(f"import os\n\n\ndef read(path):\n    return {i}\n" * (i + 1))
    return made


def text_run() -> list[list[str]]:
    """What an example that writes text takes for granted: `runs/text-small`."""
    return [
        ["data", "build", "text", "--out", "runs/data/text", "paths=[documents]", "window=64", "windows_per_sample=4", "holdout=6"],
        ["train", "text-small", "train.steps=2", "train.batch=4", *TINY],
    ]  # fmt: skip


def test_every_example_runs_after_the_ones_before_it(folder: Path, parsers: Any, examples: Any) -> None:
    # `doctor` joins a group of its own, which a process that trains has done; its examples run in test_doctor.py.
    verbs = ["", "data", "data build", "data inspect", "plan", "train", "eval", "generate"]
    known = {prog.removeprefix("sleeptrain").strip() for prog in parsers}
    assert known == {*verbs, "doctor"}, "a new verb needs a place in this order"
    lines = [words for verb in verbs for words in examples(verb) if words[0] != "doctor"]
    prepared = text_run()
    first = next(i for i, words in enumerate(lines) if "runs/text-small" in words)
    every = [*lines[:first], *prepared, *lines[first:]]
    ran = run_lines([_short(words) for words in every], folder)
    for words, line in zip(every, ran, strict=True):
        assert line.status == 0, (words, line.err)
        assert line.out or words[0] == "train", words
    assert "loss" in said(every, ran, "train rule110-tiny").err


def said(words: list[list[str]], ran: list[Line], line: str) -> Line:
    """What the first command line said that reads like this."""
    return next(one for ours, one in zip(words, ran, strict=True) if shlex.join(ours) == line)


def _short(words: list[str]) -> list[str]:
    """The same command line on less data and for fewer steps, where it does not say how much itself."""
    if words[:2] == ["data", "build"] and not any(word.startswith(("train=", "paths=")) for word in words):
        return [*words, *SAMPLES]
    if words[:1] == ["train"] and not any(word.startswith("train.steps=") for word in words):
        return [*words, "train.steps=4"]
    return words


def test_the_readme_names_commands_that_exist(parsers: Any) -> None:
    from sleeptrain.cli.main import parse

    text = (ROOT / "README.md").read_text()
    blocks = [block for block in re.split(r"\n(?!    )", text)]
    lines = [line.strip() for block in blocks for line in block.splitlines() if line.startswith("    ")]
    commands = [
        line.partition("  #")[0] for line in lines if line.startswith("sleeptrain ") and "/" not in line.split()[0]
    ]
    inline = re.findall(r"`(?:torchrun [^`]*-m|python -m sleep_launch.local [^`]*--) (sleeptrain [^`]*)`", text)
    found = [*commands, *inline]
    assert len(found) >= 6
    for line in found:
        assert callable(parse(shlex.split(line)[1:]).run), line
