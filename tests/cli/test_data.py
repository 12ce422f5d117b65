"""`sleeptrain data`: the examples of its help text, and wrong requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sleeptrain.cli.data import parse_parameters
from sleeptrain.errors import UserError
from tests.sleep_data.corpora import write_files


def test_the_examples_run(examples: Any, sleeptrain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path / "documents", [b"a line of text\n" * n for n in range(1, 30)])
    for words in [*examples("data"), *examples("data build"), *examples("data inspect")]:
        ran = sleeptrain(*words)
        assert (ran.status, ran.err) == (0, ""), (words, ran.err)
        if "--json" in words:
            assert json.loads(ran.out)["manifest"]["task"] == "rule110"
        else:
            assert ("text" if "text" in words else "rule110") in ran.out


def test_json_of_build_is_the_manifest(sleeptrain: Any, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    ran = sleeptrain("data", "build", "rule110-tiny", "--out", str(out), "--json", "train=8", "test=4")
    assert ran.status == 0
    assert json.loads(ran.out) == json.loads((out / "manifest.json").read_text())
    assert json.loads(ran.out)["splits"]["train"]["samples"] == 8


def test_text_of_your_own(examples: Any, sleeptrain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path / "documents", [b"a line of text\n" * n for n in range(1, 30)])
    [words] = examples("data tokenizer")
    ran = sleeptrain(*words)
    assert ran.status == 0 and " bytes a token in the first 6,525 bytes it was trained on" in ran.out, ran.err
    build = ["data", "build", "text", "--out", "shards", "paths=[documents]", "tokenizer=tokenizer.json", "holdout=4"]
    for processes in ("2", "1"):
        ran = sleeptrain(*build, "--processes", processes)
        assert ran.status == 0 and "read: 29 documents of 6,525 bytes" in ran.out, ran.err
    ran = sleeptrain("data", "inspect", "shards", "--plot", "lengths.png")
    assert ran.status == 0 and "train 0: BOS a" in ran.out and (tmp_path / "lengths.png").is_file()
    ran = sleeptrain(*words)
    assert ran.status == 2 and "tokenizer.json exists; remove it, or name another file" in ran.err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["data", "build", "rule110-tiny", "--out", "x", "--processes", "0"], ["--processes 0: must be at least 1"]),
        (["data", "tokenizer", "nowhere", "--out", "x"], ["nowhere does not exist"]),
        (["data", "tokenizer", ".", "--out", "x", "--vocab", "10"], ["vocab is 10"]),
        (["data", "build", "rule11", "--out", "x"], ["'rule11'", "rule110"]),
        (["data", "build", "rule110-tiny", "--out", "x", "widht=3"], ["'widht'", "width"]),
        (["data", "build", "rule110-tiny", "--out", "x", "train=-3"], ["train=-3"]),
        (
            ["data", "build", "rule110-tiny", "--out", "x", "foo", "b=[1"],
            ['"foo" (command line): expected key=value', 'b = "[1"'],
        ),
        (["data", "inspect", "no-such-folder"], ["no-such-folder"]),
        (["data", "inspect", ".", "--samples", "-1"], ["--samples -1"]),
    ],
)
def test_wrong_requests(
    sleeptrain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], parts: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = sleeptrain(*words)
    assert ran.status == 2 and ran.out == ""
    assert all(part in ran.err for part in parts), ran.err
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_run_is_no_data(sleeptrain: Any, untrained_runs: Path) -> None:
    run = untrained_runs / "runs" / "text"
    ran = sleeptrain("data", "inspect", str(run))
    assert ran.status == 2
    assert (
        ran.err == f"error: {run} is the folder of a run; its data is named under data.sources in {run}/config.yaml\n"
    )


def test_parameters_are_yaml() -> None:
    assert parse_parameters(["a=1e3", "b=[1, x]", "c=null", "d=yes"]) == {
        "a": 1000.0,
        "b": [1, "x"],
        "c": None,
        "d": True,
    }
    with pytest.raises(UserError) as caught:
        parse_parameters(["a", "b"])
    assert len(caught.value.errors) == 2
