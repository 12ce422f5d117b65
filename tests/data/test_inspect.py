"""The content of a folder of shards as text."""

from sleep_data.build import build_task
from sleeptrain.data.inspect import inspect


def test_inspect_shows_samples(folder):
    inspection = inspect(folder, samples=1)
    [row] = inspection.samples["train"]
    first, second, answer = row.split(" | ")
    assert first[:2] in ("T1", "T2") and first[:3] == second[:3] and len(first.split()[1]) == 8
    assert answer[:2] == "Q>" and answer[2] in "01"
    text = inspection.text()
    assert "100 samples" in text and "t = 1: chance 0.5" in text and "0-8, 9-17, 18-19 (scored)" in text
    assert inspection.to_json()["manifest"]["task"] == "rule110"


def test_inspect_shows_text(tmp_path):
    (tmp_path / "a.txt").write_text("so\nit|é")
    (tmp_path / "b.txt").write_text("a")  # the document of the test split
    parameters = {"paths": [str(tmp_path)], "block": 10, "holdout": 2}
    build_task({"task": "text", "parameters": parameters, "train": 10_000, "test": 0}, tmp_path / "d")
    [row] = [row for rows in inspect(tmp_path / "d").samples.values() for row in rows]
    assert row == r"BOS so \n it| \xc3 \xa9 PAD"
