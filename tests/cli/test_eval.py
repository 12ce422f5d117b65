"""`sleeptrain eval`: table, JSON and report, wrong requests, damaged runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sleeptrain.checkpoint import load_weights
from sleeptrain.cli.eval_lm_eval import check_lm_eval
from sleeptrain.cli.main import build_parser
from sleeptrain.errors import UserError
from tests.checkpoint.written import write_weights

CHECKPOINT = "runs/rule110/checkpoints/step-00000000"
CHECKPOINT_NAME = "checkpoints/step-00000000"


@pytest.fixture
def here(untrained_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a copy of the runs that a test may damage; the data is shared."""
    shutil.copytree(untrained_runs / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_table_json_and_report_agree(sleeptrain: Any, here: Path) -> None:
    shown = sleeptrain("eval", "runs/rule110", "--passes", "1,2", "--samples", "20", "--json", "--out", "report")
    assert shown.status == 0, shown.err
    body = json.loads(shown.out)
    measured = body["runs"][0]["measured"]
    assert [m["passes"] for m in measured] == [1, 2] and {m["samples"] for m in measured} == {20}
    assert body["command"] == "sleeptrain eval runs/rule110 --passes 1,2 --samples 20"
    assert json.loads((here / "report" / "report.json").read_text())["runs"] == body["runs"]
    assert sorted(path.name for path in (here / "report").iterdir()) == ["accuracy.png", "report.json", "report.md"]
    table = sleeptrain("eval", "runs/rule110", "--passes", "1,2", "--samples", "20")
    accuracy = measured[0]["by_value"]["1"]["accuracy"]
    assert table.status == 0 and f"{accuracy:.3f} [" in table.out


def test_a_checkpoint_evaluates_like_its_run(sleeptrain: Any, here: Path) -> None:
    run, checkpoint = (
        json.loads(sleeptrain("eval", path, "--samples", "8", "--json").out)["runs"][0]["measured"]
        for path in ("runs/rule110", CHECKPOINT)
    )
    assert run == checkpoint


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["runs/nope"], ["runs/nope does not exist; give a run folder"]),
        (["runs"], ["runs is neither a run folder nor a checkpoint of one; give a run folder"]),
        (["runs/rule110/checkpoints"], ["runs/rule110/checkpoints is neither a run folder nor a checkpoint of one"]),
        (["runs/rule110/manifest.json"], ["manifest.json is a file; give a run folder"]),
        (["runs/rule110", "--passes", "x"], ["--passes", "'x' is not a whole number of at least 1"]),
        (["runs/rule110", "--passes", "1,,2"], ["--passes", "'' is not a whole number of at least 1"]),
        (["runs/rule110", "--passes", "0"], ["--passes", "'0' is not a whole number of at least 1"]),
        (["runs/rule110", "--passes", "-1"], ["--passes"]),
        (["runs/rule110", "--samples", "0"], ["--samples", "'0' is not a whole number of at least 1"]),
        (["runs/rule110", "--out", CHECKPOINT + "/checkpoint.json"], ["--out runs/rule110/checkpoints/", "name another folder"]),
        (["runs/rule110", "--out", "/proc/report"], ["--out /proc/report", "name another folder"]),
        (["runs/rule110", "--data", "nope"], ["--data: data folder nope does not exist"]),
        (["runs/rule110", "--lm-eval", "x"], ["--lm-eval needs an environment with lm_eval 0.4.13, and this one has no lm_eval"]),
        (["runs/nope", "--out", "report/of/nothing"], ["runs/nope does not exist"]),
        (["runs/rule110", "--few-shot", "1"], ["--few-shot goes with --lm-eval TASK"]),
        (["runs/rule110", "runs/text"], ["runs/text was trained on other data than runs/rule110"]),
        (["runs/rule110", "runs/text", "--data", "{rule110}"], ["--data", "differ from what runs/text was trained on"]),
    ],
)  # fmt: skip
def test_wrong_requests(sleeptrain: Any, here: Path, untrained_runs: Path, words: list[str], parts: list[str]) -> None:
    ran = sleeptrain("eval", *(word.format(rule110=untrained_runs / "rule110") for word in words))
    assert (ran.status, ran.out) == (2, ""), ran.err
    assert all(part in ran.err for part in parts), ran.err
    assert not (here / "report").exists()


@pytest.mark.parametrize(
    ("version", "enough"), [("0.4.2", False), ("0.4.13", True), ("0.4.13rc1", True), ("1.0", True)]
)
def test_the_harness_has_the_version_that_was_tried(
    version: str, enough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"lm_eval": version, "transformers": "5.23.0"}
    monkeypatch.setattr("sleeptrain.cli.eval_lm_eval._version", versions.get)
    args = build_parser().parse_args(["eval", "folder", "--lm-eval", "task"])
    if enough:
        check_lm_eval(args)
    else:
        with pytest.raises(UserError, match=f"this one has lm_eval {version}"):
            check_lm_eval(args)


def no_checkpoint(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def truncated(run: Path) -> None:
    file = next(run.glob("checkpoints/step-*/part-00000.weights.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])


def altered(run: Path) -> None:
    file = next(run.glob("checkpoints/step-*/part-00000.weights.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def no_weights(run: Path) -> None:
    next(run.glob("checkpoints/step-*/part-00000.weights.safetensors")).unlink()


def change(run: Path, how: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_weights(run / CHECKPOINT_NAME)
    how(weights)
    write_weights(run / "checkpoints", 0, weights)


def other_shape(run: Path) -> None:
    change(run, lambda w: w.update({"layers.0.mlp.up.weight": torch.zeros(99, 16)}))


def extra_weight(run: Path) -> None:
    change(run, lambda w: w.update({"stranger": torch.zeros(1)}))


def no_manifest(run: Path) -> None:
    (run / "manifest.json").write_text("{")


def other_config(run: Path) -> None:
    (run / "config.yaml").write_text("modell: {}\n")


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (no_checkpoint, ["runs/rule110 has no checkpoint yet; train it first: sleeptrain train runs/rule110/config.yaml"]),
        (truncated, [f"{CHECKPOINT}/part-00000.weights.safetensors has ", " were written; there is no other checkpoint beside it"]),
        (altered, [f"{CHECKPOINT}/part-00000.weights.safetensors is not what was written: its hash differs"]),
        (no_weights, [f"{CHECKPOINT}/part-00000.weights.safetensors cannot be read (No such file or directory)"]),
        (other_shape, ["does not fit runs/rule110/config.yaml: the shape of parameter layers.0.mlp.up.weight is [99, 16] in the checkpoint and [16, 16] in the config"]),
        (extra_weight, ["does not fit runs/rule110/config.yaml: parameter stranger is in one of them only"]),
        (no_manifest, ["runs/rule110/manifest.json cannot be read", "copy the run folder again"]),
        (other_config, ["modell = {} (runs/rule110/config.yaml:1): unknown key; did you mean model?"]),
    ],
)  # fmt: skip
def test_damaged_runs_are_refused_by_name(
    sleeptrain: Any, here: Path, damage: Callable[[Path], None], parts: list[str]
) -> None:
    damage(here / "runs" / "rule110")
    for words in (["eval", "runs/rule110"], ["generate", "runs/rule110", "--prompt", "0 1"]):
        ran = sleeptrain(*words)
        assert (ran.status, ran.out) == (2, ""), ran.err
        assert all(part in ran.err for part in parts), ran.err


def test_missing_data_is_reported_with_the_source_of_its_path(
    sleeptrain: Any, here: Path, untrained_runs: Path
) -> None:
    config = here / "runs" / "rule110" / "config.yaml"
    config.write_text(config.read_text().replace(str(untrained_runs / "rule110"), "gone"))
    ran = sleeptrain("eval", "runs/rule110")
    assert (ran.status, ran.out) == (2, "")
    assert "data.sources (runs/rule110/config.yaml; --data names another): data folder gone does not exist" in ran.err
    assert sleeptrain("eval", "runs/rule110", "--data", str(untrained_runs / "rule110"), "--samples", "4").status == 0
