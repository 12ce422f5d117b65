"""The content of a folder of shards as text."""

import json
import re
import tempfile

import pytest

from sleep_data.build import build_task
from sleep_data.train_tokenizer import train_tokenizer
from sleeptrain.data.inspect import inspect
from sleeptrain.errors import UserError
from tests.data.servers import BUCKET, CREDENTIALS, http_server, s3_server, upload


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


def test_inspect_shows_prompts_documents_and_the_corpus(tmp_path):
    """Tokens that no target predicts are in brackets, and a tokenizer file decodes its ids."""
    lines = [{"prompt": "two and two is", "answer": " four"}, {"text": "one"}, {"text": "one"}, {"text": ""}]
    lines += [{"text": f"number {i}"} for i in range(9)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    train_tokenizer([str(tmp_path)], 280, tmp_path / "tokenizer.json")
    parameters = {"paths": [str(tmp_path / "a.jsonl")], "holdout": 3, "tokenizer": str(tmp_path / "tokenizer.json")}
    build_task({"task": "text", "parameters": parameters, "train": None, "test": None}, tmp_path / "d")
    inspection = inspect(tmp_path / "d", samples=1)
    shown = " ".join(row for rows in inspection.samples.values() for row in rows)
    assert re.search(r"BOS \[t.* is\] _", shown) and "BOS number _8" in shown, shown
    text = inspection.text()
    assert (
        "corpus      13 documents (1 repeated, 1 empty) of 97 bytes" in text
        and "documents, 1 blocks of 65,536 tokens" in text
    )
    inspection.plot_lengths(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_samples_have_no_lengths_to_draw(folder, tmp_path):
    with pytest.raises(UserError, match="--plot draws the lengths of documents of text"):
        inspect(folder, samples=0).plot_lengths(tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("kind", ["http", "s3"])
def test_inspect_of_a_url_is_that_of_the_folder(tmp_path, monkeypatch, kind):
    """With a tokenizer file, which is downloaded, too; nothing stays behind, and a URL without data is named."""
    for i in range(12):
        (tmp_path / f"{i}.txt").write_text(f"number {i}, " * 5)
    train_tokenizer([str(tmp_path)], 280, tmp_path / "tokenizer.json")
    parameters = {"paths": [str(tmp_path)], "holdout": 3, "tokenizer": str(tmp_path / "tokenizer.json")}
    build_task({"task": "text", "parameters": parameters, "train": None, "test": None}, tmp_path / "served" / "d")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with http_server(tmp_path / "served") if kind == "http" else s3_server() as server:
        if kind == "s3":
            upload(server, tmp_path / "served" / "d", "d")
            monkeypatch.setenv("S3_ENDPOINT_URL", server)
        base = server if kind == "http" else f"s3://{BUCKET}"
        found = inspect(f"{base}/d")
        with pytest.raises(UserError, match=rf"{base}/nothing/manifest\.json cannot be downloaded"):
            inspect(f"{base}/nothing")
    local = inspect(tmp_path / "served" / "d")
    assert found.samples == local.samples and found.samples["train"][0].startswith("BOS number _")
    assert found.manifest == local.manifest
    assert not [path for path in (tmp_path / "temporary").iterdir() if not path.name.startswith("sleeptrain-locks")]
