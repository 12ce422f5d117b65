"""`sleeptrain generate`: greedy and sampled text, prompts, wrong requests."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from sleeptrain.inference.compiled import compiled_functions


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


def test_standard_input_is_a_prompt(sleeptrain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"lmno \xff")))
    ran = sleeptrain("generate", "runs/text", "--prompt-file", "-", "--tokens", "9")
    assert ran == sleeptrain("generate", "runs/text", "--prompt", "lmno \udcff", "--tokens", "9")


def test_text_ends_before_a_stop_string(sleeptrain: Any) -> None:
    line = ("generate", "runs/text", "--prompt", "lmno", "--tokens", "30", "--temperature", "1")
    whole = sleeptrain(*line).out.removesuffix("\n")
    stop = whole[7:9]
    assert sleeptrain(*line, "--stop", "not in there", "--stop", stop).out == whole[: whole.index(stop)] + "\n"


def test_prompts_of_a_file_are_continued_in_a_batch_as_alone(sleeptrain: Any, tmp_path: Path) -> None:
    prompts = ["lmno", "é", "a prompt of several windows, and then a little more\n", "\u2028x"]
    file = tmp_path / "prompts.jsonl"
    lines = [json.dumps(prompts[0]), *(json.dumps({"prompt": p}, ensure_ascii=False) for p in prompts[1:])]
    file.write_text("\n\n".join(lines) + "\n")
    sampled = ("--tokens", "20", "--temperature", "1", "--seed", "3", "--min-p", "0.001")
    ran = sleeptrain("generate", "runs/text", "--prompt-file", str(file), *sampled)
    found = [json.loads(line) for line in ran.out.splitlines()]
    assert [line["prompt"] for line in found] == prompts
    for line in found:
        alone = sleeptrain("generate", "runs/text", "--prompt", line["prompt"], *sampled)
        assert alone.out == line["text"] + "\n"
        assert line["finish"] == ("length" if line["tokens"] == 20 else "stop")


def test_a_text_is_continued_from_a_saved_state(sleeptrain: Any, tmp_path: Path) -> None:
    state = str(tmp_path / "state.safetensors")
    start = "one window is over, and another one has begun"
    saved = sleeptrain("generate", "runs/text", "--prompt", start, "--tokens", "5", "--save-state", state)
    assert saved.status == 0, saved.err
    written = saved.out.removesuffix("\n")
    more = sleeptrain("generate", "runs/text", "--load-state", state, "--prompt", "", "--tokens", "9")
    whole = sleeptrain("generate", "runs/text", "--prompt", start, "--tokens", "14")
    assert written + more.out == whole.out
    two = tmp_path / "two.jsonl"
    two.write_text('"a"\n"b"\n')
    rows = sleeptrain("generate", "runs/text", "--load-state", state, "--prompt-file", str(two))
    assert rows.status == 2 and "has 1 rows for 2 prompts; give 1" in rows.err
    other = sleeptrain("generate", "runs/rule110", "--load-state", state, "--prompt", "0")
    assert other.status == 2 and "was saved with model." in other.err


def test_where_decoding_cannot_be_compiled_a_line_says_so(
    sleeptrain: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sleeptrain.model.compile_blocks.missing_compiler", lambda: "there is no compiler")
    compiled_functions.cache_clear()
    try:
        line = ("generate", "runs/text", "--prompt", "lmno", "--tokens", "9")
        assert sleeptrain(*line, "--compile").out == sleeptrain(*line).out
    finally:
        compiled_functions.cache_clear()
    assert [record.message for record in caplog.records] == ["decoding runs uncompiled: there is no compiler"]


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
        (
            ["runs/text", "--prompt", "a", "--min-p", "2", "--stop", "", "--save-state", "nowhere/a"],
            ["--min-p 2.0: must be from 0 to 1", "--stop ['']: must be", "--save-state nowhere/a: must be in a folder that exists"],
        ),
        (["runs/text", "--prompt", "a", "--engine", "llama.cpp", "--gguf", "a", "--compile"], ["--compile does not apply to --engine llama.cpp"]),
        (["runs/text", "--prompt", "a", "--load-state", "nope"], ["nope cannot be read as a state of a session"]),
        (["runs/text", "--prompt-file", "empty.jsonl"], ["--prompt-file empty.jsonl is empty: give at least one prompt"]),
        (["runs/text", "--prompt-file", "wrong.jsonl"], ["--prompt-file wrong.jsonl:2 is no JSON"]),
        (["runs/text", "--prompt-file", "other.jsonl"], ["--prompt-file other.jsonl:1 holds no prompt"]),
        (["runs/text", "--prompt-file", "blank.jsonl"], ["--prompt-file blank.jsonl:1 is empty: give at least one token"]),
        (["runs/rule110", "--prompt-file", "nope"], ["--prompt-file nope cannot be read: No such file or directory\n"]),
        (["runs/rule110", "--prompt-file", "runs"], ["--prompt-file runs cannot be read"]),
        (["runs/nope", "--prompt", "0"], ["runs/nope does not exist; give a run folder"]),
    ],
)  # fmt: skip
def test_wrong_requests(sleeptrain: Any, words: list[str], parts: list[str]) -> None:
    for name, text in {"empty": "\n", "wrong": '"a"\n{', "other": '{"text": "a"}', "blank": '""'}.items():
        Path(f"{name}.jsonl").write_text(text)
    ran = sleeptrain("generate", *words)
    assert (ran.status, ran.out) == (2, ""), ran.err
    assert all(part in ran.err for part in parts), ran.err
