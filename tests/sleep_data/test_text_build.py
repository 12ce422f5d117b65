"""Shards of text: every document once, in one split, with equal bytes however the work is divided and whenever it is killed."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from sleep_data import documents, tokenized
from sleep_data.staging import _locked
from sleep_data.text import Text
from sleep_data.text_build import build
from tests.sleep_data.corpora import BOS, documents_in, predicted_in, texts_in, write_files

ALL = {"train": None, "test": None}


def random_texts(count=39, seed=0):
    """Distinct documents of 1, 2, ... bytes."""
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, size=n, dtype=np.uint8).tobytes() for n in range(1, count + 1)]


def is_in(document, split, holdout=2):
    return (int.from_bytes(hashlib.sha256(document).digest()[:8], "little") % holdout == 0) == (split == "test")


def hashes(folder):
    """The content of all files but `inputs`, which holds the times of the corpus."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "inputs"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def text_of(folder, **parameters):
    return Text(paths=(str(folder),), **({"block": 16, "holdout": 2} | parameters))


def test_every_document_is_in_one_split_and_repeated_ones_are_read_once(tmp_path):
    texts = random_texts()
    corpus = write_files(tmp_path / "corpus", [*texts, texts[5], b"", texts[5]])
    body = build(text_of(corpus), tmp_path / "out", ALL)
    for split in ("train", "test"):
        assert texts_in(tmp_path / "out", split) == [text for text in texts if is_in(text, split)]
        found = [text for text in texts if is_in(text, split)]
        entry = body["splits"][split]
        assert entry["documents"] == len(found) > 5 and entry["tokens"] == sum(map(len, found)) + len(found)
        assert entry["targets"] == sum(map(len, found)) and entry["samples"] == -(-entry["tokens"] // 16)
        assert entry["lengths"] == [
            sum(len(text) + 1 in range(1 << k, 2 << k) for text in found) for k in range(len(entry["lengths"]))
        ]
    size = sum(map(len, texts)) + 2 * len(texts[5])
    assert body["corpus"] == {"bytes": size, "documents": 42, "repeated": 2, "empty": 1, "not UTF-8": 0}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "out"]


def test_the_first_documents_of_a_split(tmp_path):
    texts = random_texts()
    corpus = write_files(tmp_path / "corpus", texts)
    body = build(text_of(corpus), tmp_path / "out", {"train": 3, "test": 0})
    assert texts_in(tmp_path / "out", "train") == [text for text in texts if is_in(text, "train")][:3]
    assert set(body["splits"]) == {"train"}


def test_prompts_are_read_and_not_predicted(tmp_path):
    lines = [{"prompt": f"what is {i}?", "answer": f" it is {i}"} for i in range(20)] + [{"prompt": "", "answer": "x"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    build(text_of(tmp_path / "a.jsonl"), tmp_path / "out", ALL)
    for split in ("train", "test"):
        found = [line for line in lines if is_in((line["prompt"] + line["answer"]).encode(), split)]
        assert texts_in(tmp_path / "out", split) == [(line["prompt"] + line["answer"]).encode() for line in found]
        assert predicted_in(tmp_path / "out", split) == list("".join(line["answer"] for line in found).encode())


@pytest.mark.parametrize("copies", [1, 2])
def test_of_a_few_documents_that_belong_to_one_split_the_end_is_held_out(tmp_path, copies):
    texts = [text for text in random_texts(60, 1) if is_in(text, "train", 10) and len(text) > 20][:copies]
    build(text_of(write_files(tmp_path / "corpus", texts), holdout=10), tmp_path / "out", ALL)
    train, test = texts_in(tmp_path / "out", "train"), texts_in(tmp_path / "out", "test")
    assert [one + other for one, other in zip(train, test, strict=True)] == texts
    assert [len(one) for one in test] == [len(text) // 10 for text in texts]
    assert documents_in(tmp_path / "out", "test")[0] == list(test[0])


def test_the_end_of_an_answer_is_held_out_as_an_answer(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "abcdefgh", "answer": "ijkl"}))
    build(text_of(tmp_path / "a.jsonl", holdout=2), tmp_path / "out", ALL)
    assert texts_in(tmp_path / "out", "train") == [b"abcdef"] and predicted_in(tmp_path / "out", "train") == []
    assert texts_in(tmp_path / "out", "test") == [b"ghijkl"] and predicted_in(tmp_path / "out", "test") == list(b"ijkl")


def test_inputs_that_are_tokenized_already(tmp_path):
    ids = np.random.default_rng(0).integers(0, 70_000, 3_000).astype(np.int32)
    ids[::50] = 0
    np.save(tmp_path / "a.npy", ids)
    build(text_of(tmp_path / "a.npy", vocab=70_000, separator=0), tmp_path / "out", ALL)
    found = [documents_in(tmp_path / "out", split, 70_000) for split in ("train", "test")]
    ends = [*(np.flatnonzero(ids == 0) + 1).tolist(), len(ids)]
    expected = [ids[start:stop].tolist() for start, stop in zip([0, *ends], ends, strict=False) if stop > start]
    assert sorted(found[0] + found[1]) == sorted(expected) and min(map(len, found)) > 10
    for parameters, message in (
        ({"vocab": 100}, r"a\.npy: it holds the token id \d+; the vocabulary has the ids 0 to 99"),
        ({}, "name their tokenizer"),
    ):
        with pytest.raises(ValueError, match=message):
            build(text_of(tmp_path / "a.npy", **parameters), tmp_path / "bad", ALL)


def corpus_of_parts(folder, monkeypatch=None):
    """A corpus that is read in several parts, and several shards: .txt files and lines."""
    texts = random_texts(80, 2)
    write_files(folder, texts[:40])
    (folder / "z.jsonl").write_text("\n".join(json.dumps({"text": text.hex()}) for text in [*texts[40:], texts[41]]))
    if monkeypatch is not None:
        for module in (documents, tokenized):
            monkeypatch.setattr(module, "SPAN", 400)
    return folder


def test_bytes_do_not_depend_on_the_number_of_processes(tmp_path, monkeypatch):
    corpus = corpus_of_parts(tmp_path / "corpus")
    whole = build(text_of(corpus), tmp_path / "whole", ALL, shard_bytes=256)
    corpus_of_parts(corpus, monkeypatch)
    os.utime(corpus / "000.txt")
    reported = []
    divided = build(
        text_of(corpus),
        tmp_path / "divided",
        ALL,
        processes=3,
        shard_bytes=256,
        progress=lambda *values: reported.append(values),
    )
    assert hashes(tmp_path / "whole") == hashes(tmp_path / "divided") and whole == divided
    assert len(hashes(tmp_path / "whole")) > 12
    assert {name for name, *_ in reported} == {"MB read", "blocks written"} and len(reported) > 20


def test_special_tokens_in_documents_are_text_for_all_processes(tmp_path, monkeypatch):
    """What switches them off is no part of a pickled tokenizer."""
    words = {"end": 0, "of": 1, "text": 2, "<": 3, ">": 4, "?": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Punctuation()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    corpus = write_files(tmp_path / "corpus", [b"<end>", b"<end><text>", b"<of><end>", b"text<end>"])
    monkeypatch.setattr(tokenized, "SPAN", 1)  # a part for every document
    for processes, out in ((1, tmp_path / "one"), (2, tmp_path / "two")):
        build(text_of(corpus, tokenizer=str(tmp_path / "tokenizer.json")), out, ALL, processes=processes)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    found = {token for document in documents_in(tmp_path / "two", "train", bos=7) for token in document}
    assert {words["<"], words["end"]} <= found <= set(words.values())


KILLED = """
import os, signal, sys
from pathlib import Path
from sleep_data import documents, tokenized
from sleep_data.staging import _locked
from sleep_data.text import Text
from sleep_data.text_build import build
documents.SPAN = tokenized.SPAN = 400
calls = int(sys.argv[3])
def progress(*values):
    global calls
    calls -= 1
    if calls == 0:
        os.kill(os.getpid(), signal.SIGKILL)
task = Text(paths=(sys.argv[1],), block=16, holdout=2)
build(task, Path(sys.argv[2]), dict(train=None, test=None), processes=int(sys.argv[4]), shard_bytes=256, progress=progress)
"""


@pytest.mark.parametrize(("calls", "processes"), [(3, 1), (14, 1), (25, 1), (14, 2)])
def test_a_killed_build_continues(tmp_path, monkeypatch, calls, processes):
    """Parts and shards that are complete are not made again, and all bytes are those of an undisturbed build."""
    corpus = corpus_of_parts(tmp_path / "corpus", monkeypatch)
    command = [sys.executable, "-c", KILLED, str(corpus), str(tmp_path / "out"), str(calls), str(processes)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    staging = tmp_path / ".out.building"
    done = {path: path.stat().st_mtime_ns for path in staging.rglob("*.npz") if path.parent == staging}
    assert len(done) >= min(calls, 10) and not (tmp_path / "out").exists()
    seen = []

    def progress(*values):
        seen.append({path: path.stat().st_mtime_ns for path in done if path.exists()})

    build(text_of(corpus), tmp_path / "out", ALL, shard_bytes=256, progress=progress)
    assert seen[0] == done
    build(text_of(corpus), tmp_path / "undisturbed", ALL, shard_bytes=256)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "undisturbed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "out", "undisturbed"]


@pytest.mark.parametrize("content", ["", '{"text": 3}', '{"body": "a"}'])
def test_an_error_before_anything_is_done_leaves_nothing(tmp_path, caplog, content):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(ValueError):
        build(text_of(tmp_path / "a.jsonl"), tmp_path / "out", ALL)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"] and "is kept" not in caplog.text


def test_after_an_error_the_build_continues_with_the_parts_that_are_whole(tmp_path, monkeypatch, caplog):
    corpus = corpus_of_parts(tmp_path / "corpus", monkeypatch)
    (corpus / "zz.jsonl").write_text('{"text": 3}')
    with pytest.raises(ValueError, match=r"zz\.jsonl, the line at byte 0 has 3 in the field 'text'"):
        build(text_of(corpus), tmp_path / "out", ALL)
    assert f"what is done is kept in {tmp_path / '.out.building'}; the same build continues with it" in caplog.text
    kept = {path.name for path in (tmp_path / ".out.building").glob("*.npz")}
    assert len(kept) > 3 and not (tmp_path / "out").exists()
    (corpus / "zz.jsonl").write_text('{"text": "3"}')
    read = []
    monkeypatch.setattr(
        "sleep_data.text_build.run_all", lambda work, calls, processes: read.extend(calls) or _run(work, calls)
    )
    build(text_of(corpus), tmp_path / "out", ALL)
    assert {f"{call[-1].name}.npz" for call in read if isinstance(call[-1], Path)}.isdisjoint(kept) and len(read) == 1


def _run(work, calls):
    for number, call in enumerate(calls):
        work(*call)
        yield number


def test_a_folder_of_the_same_documents_is_not_written_again_and_another_is_an_error(tmp_path):
    corpus = write_files(tmp_path / "corpus", random_texts())
    build(text_of(corpus), tmp_path / "out", ALL)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    build(text_of(corpus), tmp_path / "out", ALL)
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    os.utime(corpus / "003.txt", (1, 1))  # touched, with the same content
    build(text_of(corpus), tmp_path / "out", ALL)
    with pytest.raises(ValueError, match=r"holds other data .*block"):
        build(text_of(corpus, block=8), tmp_path / "out", ALL)
    with pytest.raises(ValueError, match=r"holds other data .*(train|test) \S+ instead of"):
        build(text_of(corpus), tmp_path / "out", ALL | {"train": 3})
    (corpus / "003.txt").write_bytes(b"another")
    with pytest.raises(ValueError, match=r"holds other data .*made from other documents"):
        build(text_of(corpus), tmp_path / "out", ALL)


def test_two_builds_at_once_give_one_folder(tmp_path):
    corpus = write_files(tmp_path / "corpus", random_texts())
    command = [sys.executable, "-c", KILLED, str(corpus), str(tmp_path / "out"), "-1", "1"]
    with _locked(tmp_path / ".out.lock"):
        builds = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
        for one in builds:
            assert (
                f"another process builds this folder; waiting until it ends (it holds {tmp_path / '.out.lock'})"
                in one.stderr.readline()
            )
    assert [(one.wait(), one.stderr.read()) for one in builds] == [(0, "")] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "out"]


def test_bytes_that_are_not_utf8_are_counted_where_they_are_replaced(tmp_path):
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[])).save(str(tmp_path / "tokenizer.json"))
    corpus = write_files(tmp_path / "corpus", [b"ab" * n + b"\xff" * (n % 2) for n in range(1, 12)])
    body = build(text_of(corpus, tokenizer=str(tmp_path / "tokenizer.json")), tmp_path / "out", ALL)
    assert body["corpus"]["not UTF-8"] == 6 and body["vocab"] == 4
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


def test_wrong_requests(tmp_path):
    for name in ("a.txt", "a.jsonl"):  # the latter has no part
        (tmp_path / name).touch()
        with pytest.raises(ValueError, match="there is no text in the files under"):
            build(text_of(tmp_path / name), tmp_path / "out", ALL)
    corpus = write_files(tmp_path / "corpus", [b"", b""])
    with pytest.raises(ValueError, match="there is no text in the files under"):
        build(text_of(corpus), tmp_path / "out", ALL)
    for parameters, message in (
        ({"block": 1}, "block is 1"), ({"holdout": 1}, "holdout is 1"), ({"vocab": 0}, "vocab is 0"),
        ({"vocab": 5, "tokenizer": "a.json"}, "vocab and tokenizer are both given"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            text_of(corpus, **parameters)
    one = write_files(tmp_path / "one", [b"x"])
    with pytest.raises(
        ValueError, match="the train split of text is empty; ask for 0 train samples, or change the holdout"
    ):
        build(text_of(one), tmp_path / "out", ALL)
    assert BOS == 256 and not (tmp_path / "out").exists()
