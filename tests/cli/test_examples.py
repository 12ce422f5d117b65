"""The examples of every help text, run in order, and the commands of the README, parsed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.cli.lines import TINY, Line, run_lines

ROOT = Path(__file__).parents[2]
SAMPLES = ["train=256", "test=32"]
"""Added to builds of shipped tasks, which otherwise take seconds each."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("examples")
    (made / "documents").mkdir()
    for i in range(24):
        (made / "documents" / f"{i}.py").write_text(f"import os\n\n\ndef read(path):\n    return {i}\n" * (i + 1))
    return made


def text_run() -> list[list[str]]:
    """Command lines that create `runs/text-small`, which examples of `generate` need."""
    return [
        ["data", "build", "text", "--out", "runs/data/text", "paths=[documents]", "holdout=6"],
        ["train", "text-small", "train.steps=2", "train.batch=4", *TINY],
    ]  # fmt: skip


def test_every_example_runs_after_the_previous_ones(folder: Path, parsers: Any, examples: Any) -> None:
    # `doctor` creates a process group, which fails after a training in the same process; its examples run in test_doctor.py.
    # `serve` does not end by itself; its examples run in test_serve.py. Those of jobs need SLURM; test_launch.py runs such words.
    commands = [
        "",
        "data",
        "data build",
        "data inspect",
        "data tokenizer",
        "plan",
        "train",
        "study",
        "report",
        "eval",
        "generate",
        "export",
        "import",
    ]
    known = {prog.removeprefix("sleeptrain").strip() for prog in parsers}
    on_a_cluster = {"launch", "job", "job status", "job logs", "job cancel", "preflight"}
    assert known == {*commands, *on_a_cluster, "doctor", "serve"}, "add a new command to this order"
    lines = [words for command in commands for words in examples(command) if words[0] not in ("doctor", "serve")]
    prepared = text_run()
    first_use = next(i for i, words in enumerate(lines) if "runs/text-small" in words)
    every = [*lines[:first_use], *prepared, *lines[first_use:]]
    ran = run_lines([_short(words) for words in every], folder)
    for words, line in zip(every, ran, strict=True):
        assert line.status == 0, (words, line.err)
        assert line.out or words[0] == "train", words
    trained = result_of(every, ran, "train rule110-tiny").err
    assert "loss" in trained and "optim.schedule.warmup = 10 is longer than the run" in trained, "four steps"


def result_of(lines: list[list[str]], ran: list[Line], line: str) -> Line:
    """The result of the first command line that equals `line`."""
    return next(result for words, result in zip(lines, ran, strict=True) if shlex.join(words) == line)


def _short(words: list[str]) -> list[str]:
    """The command line with less data and fewer steps, unless it names them."""
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
