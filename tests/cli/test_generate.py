"""`sleeptrain generate`: greedy and sampled text, prompts, wrong requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def here(untrained_runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(untrained_runs)


def test_greedy_and_sampled_text_are_reproducible(sleeptrain: Any) -> None:
    prompt = ("generate", "runs/text", "--prompt", "lmno é")
    greedy = sleeptrain(*prompt, "--tokens", "40")
    assert greedy.status == 0 and greedy.out.endswith("\n")
    assert greedy == sleeptrain(*prompt, "--tokens", "40")
    drawn = [sleeptrain(*prompt, "--tokens", "40", "--temperature", "2", "--seed", seed) for seed in ("1", "1", "2")]
    assert drawn[0] == drawn[1] != drawn[2]
    assert sleeptrain(*prompt, "--tokens", "3", "--passes", "4", "--temperature", "1", "--top-k", "1").status == 0


def test_a_task_with_symbols_generates_symbols(sleeptrain: Any) -> None:
    ran = sleeptrain("generate", "runs/rule110", "--prompt", "T1 0 1 101 T2", "--tokens", "5")
    assert ran.status == 0 and len(ran.out.split()) == 5
    assert set(ran.out.split()) <= {"0", "1", "Q", "PAD", "T1", "T2", "CELL", "Q0", "Q1"}


def test_a_prompt_may_be_a_file_or_bytes_that_are_not_utf8(sleeptrain: Any, tmp_path: Path) -> None:
    file = tmp_path / "prompt"
    file.write_text("lmno")
    assert sleeptrain("generate", "runs/text", "--prompt-file", str(file), "--tokens", "2").status == 0
    assert (
        sleeptrain("generate", "runs/text", "--prompt", "\udcff", "--tokens", "2").status == 0
    )  # b"\xff" on a command line


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["runs/rule110", "--prompt", "0 1 z"], ["--prompt: 'z' in 'z' is not a symbol of this task; its symbols are 0 1 Q PAD T1 T2"]),
        (["runs/rule110", "--prompt", "01x0"], ["--prompt: 'x' in '01x0' is not a symbol"]),
        (["runs/rule110", "--prompt", " "], ["--prompt is empty"]),
        (["runs/text", "--prompt", ""], ["--prompt is empty: give at least one token"]),
        (["runs/text", "--prompt-file", "/dev/null"], ["--prompt-file is empty: give at least one token"]),
        (["runs/rule110"], ["one of the arguments --prompt --prompt-file is required"]),
        (["runs/rule110", "--prompt", "0", "--tokens", "many"], ["--tokens", "'many'"]),
        (
            ["runs/rule110", "--prompt", "0", "--tokens", "0", "--top-p", "2", "--top-k", "-1", "--temperature", "-1", "--passes", "0", "--seed", "-1"],
            ["--tokens 0: must be", "--top-p 2.0: must be", "--top-k -1: must be", "--temperature -1.0: must be", "--passes 0: must be", "--seed -1: must be"],
        ),
        (["runs/rule110", "--prompt", "0", "--temperature", "nan"], ["--temperature nan: must be 0 or more"]),
        (["runs/rule110", "--prompt-file", "nope"], ["--prompt-file nope cannot be read"]),
        (["runs/rule110", "--prompt-file", "runs"], ["--prompt-file runs cannot be read"]),
        (["runs/nope", "--prompt", "0"], ["runs/nope does not exist; give a run folder"]),
    ],
)  # fmt: skip
def test_wrong_requests(sleeptrain: Any, words: list[str], parts: list[str]) -> None:
    ran = sleeptrain("generate", *words)
    assert (ran.status, ran.out) == (2, ""), ran.err
    assert all(part in ran.err for part in parts), ran.err
