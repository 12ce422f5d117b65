"""Writing shards: reproducible bytes, no partial folders, and no overwriting of other data."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from sleep_data import manifest
from sleep_data.rule110 import Rule110
from sleep_data.shards import build

TASK = Rule110(strings=2, width=8, transitions=(1, 2))
SAMPLES = {"train": 1500, "test": 40}


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_equal_requests_give_equal_bytes(tmp_path):
    reported = []
    build(TASK, tmp_path / "a", SAMPLES, 7, progress=lambda *values: reported.append(values), shard_bytes=1 << 16)
    build(TASK, tmp_path / "b", SAMPLES, 7, shard_bytes=1 << 16)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    assert len(hashes(tmp_path / "a")) > 5  # several shards
    assert reported == [("train", 1024, 1500), ("train", 1500, 1500), ("test", 40, 40)]
    build(TASK, tmp_path / "c", SAMPLES, 8, shard_bytes=1 << 16)
    assert hashes(tmp_path / "a") != hashes(tmp_path / "c")


def test_the_manifest_describes_the_folder(tmp_path):
    body = build(TASK, tmp_path / "a", SAMPLES, 7)
    assert body == manifest.read(tmp_path / "a")
    assert body["format"] == manifest.FORMAT and body["task"] == "rule110" and body["seed"] == 7
    assert (body["vocab"], body["pad"], body["query"], body["length"]) == (6, 3, 2, 20)
    assert body["windows"][-1] == {"start": 18, "stop": 20, "targets": True, "problem": None}
    assert body["splits"]["train"]["samples"] == 1500
    assert body["splits"]["train"]["tokens"] == 1500 * 20 and body["splits"]["train"]["targets"] == 3000
    assert body["label"] == {"name": "t", "values": [1, 2]} and set(body["baselines"]) == {"1", "2"}
    assert body["columns"] == {
        "tokens": "ndarray:int32:20",
        "targets": "ndarray:int32:20",
        "groups": "ndarray:int32:20",
        "id": "int",
        "label_t": "int",
    }


def test_a_folder_of_the_same_request_is_not_written_again_and_another_is_an_error(tmp_path):
    out = tmp_path / "a"
    build(TASK, out, SAMPLES, 7)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    build(TASK, out, SAMPLES, 7)
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(ValueError, match=r"holds other data \(seed 7 instead of 8\); remove it"):
        build(TASK, out, SAMPLES, 8)
    with pytest.raises(ValueError, match=r"holds other data \(test 40 instead of 41\)"):
        build(TASK, out, SAMPLES | {"test": 41}, 7)
    unrelated = tmp_path / "unrelated"
    unrelated.mkdir()
    (unrelated / "notes.txt").write_text("text")
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        build(TASK, unrelated, SAMPLES)
    assert (unrelated / "notes.txt").exists()


def test_a_failed_build_leaves_no_files(tmp_path):
    def fail(split, written, count):
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        build(TASK, tmp_path / "a", SAMPLES, progress=fail)
    assert list(tmp_path.iterdir()) == []


def test_splits_without_samples(tmp_path):
    body = build(TASK, tmp_path / "a", {"train": 10, "test": 0})
    assert set(body["splits"]) == {"train"} and not (tmp_path / "a" / "test").exists()
    with pytest.raises(ValueError, match="both 0"):
        build(TASK, tmp_path / "b", {"train": 0, "test": 0})


def test_a_changed_manifest_is_an_error(tmp_path):
    build(TASK, tmp_path / "a", SAMPLES)
    path = tmp_path / "a" / manifest.NAME
    body = json.loads(path.read_text())
    path.write_text(json.dumps(body | {"pad": 1}))
    with pytest.raises(ValueError, match="was changed"):
        manifest.read(tmp_path / "a")
    path.write_text(json.dumps(body | {"format": 3}))
    with pytest.raises(ValueError, match="format 3"):
        manifest.read(tmp_path / "a")
    path.write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        manifest.read(tmp_path / "a")


def test_concurrent_builds(tmp_path):
    """The second build waits for the first one and finds its folder."""
    code = "from pathlib import Path; from sleep_data.shards import build; from sleep_data.rule110 import Rule110; "
    code += "build(Rule110(strings=2, width=8, transitions=(1, 2)), Path({!r}), dict(train=1500, test=40), 7)"
    command = [sys.executable, "-c", code.format(str(tmp_path / "a"))]
    builds = [subprocess.Popen(command) for _ in range(3)]
    assert [one.wait() for one in builds] == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert manifest.read(tmp_path / "a")["seed"] == 7


def test_what_a_killed_build_left_is_removed(tmp_path):
    (tmp_path / ".a.building" / "shards").mkdir(parents=True)
    (tmp_path / ".a.building" / "shards" / "left").write_text("")
    build(TASK, tmp_path / "a", SAMPLES, 7)
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and not (tmp_path / "a" / "left").exists()
