"""Text: blocks hold complete documents, and the splits share none."""

import hashlib
import json
import sys

import numpy as np
import pytest

from sleep_data.documents import find
from sleep_data.text import Text
from sleep_data.tokenize import FileTokenizer

BOS = 256


def write(folder, documents, block=4):
    for i, document in enumerate(documents):
        (folder / f"{i:03}.txt").write_bytes(document)
    return Text(paths=(str(folder),), block=block, holdout=2)


def documents_of(task, split, samples=None):
    """The documents of a split, from the starts of its blocks."""
    tokens, starts, length = [], [], 0
    for block in task.blocks(split, samples, 0):
        starts += [length + start for start in block["starts"][0].tolist()]
        tokens += block["tokens"][0].tolist()
        length = len(tokens)
    pieces = [tokens[start:stop] for start, stop in zip(starts, [*starts[1:], length], strict=True)]
    assert all(piece[0] == BOS for piece in pieces) and sum(map(len, pieces)) == length
    return [bytes(piece[1:]) for piece in pieces]


def is_in(document, split):
    return (int.from_bytes(hashlib.sha256(document).digest()[:8], "little") % 2 == 0) == (split == "test")


def test_blocks_hold_complete_documents_and_splits_share_none(tmp_path):
    random = np.random.default_rng(0)
    texts = [random.integers(0, 256, size=n, dtype=np.uint8).tobytes() for n in range(1, 40)]
    task = write(tmp_path, [*texts, texts[5], b""])
    read = {split: documents_of(task, split) for split in ("train", "test")}
    for split, found in read.items():
        assert found == [text for text in [*texts, texts[5]] if is_in(text, split)]
        assert len(found) > 5
    assert not set(read["train"]) & set(read["test"])


def test_limited_number_of_documents(tmp_path):
    task = write(tmp_path, [bytes([65 + i]) * 9 for i in range(20)])
    assert documents_of(task, "train", 3) == documents_of(task, "train")[:3]


def test_file_formats(tmp_path):
    (tmp_path / "b.md").write_text("# two")
    (tmp_path / "a.py").write_text("one = 1")
    (tmp_path / "c.jsonl").write_text('{"text": "thr\\u00e9e"}\n\n{"text": "four"}\n')
    (tmp_path / "d.bin").write_bytes(b"not read")
    (tmp_path / ".hidden.txt").write_text("not read")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "e.txt").write_text("five")
    task = Text(paths=(str(tmp_path),), block=8, holdout=3)
    texts = {document.decode() for split in ("train", "test") for document in documents_of(task, split)}
    assert texts == {"one = 1", "# two", "thrée", "four", "five"}


def test_inputs_depend_on_the_content(tmp_path):
    task = write(tmp_path, [b"abc", b"def"])
    before = task.inputs()
    assert before == task.inputs()
    (tmp_path / "000.txt").write_bytes(b"abd")
    assert task.inputs() != before


def test_of_a_single_file_the_end_is_held_out(tmp_path):
    """So are the ends of a few files that all belong to one split."""
    text = "".join(f"line {i} ends with ü\n" for i in range(200)).encode()
    for copies in ([text], [text, text]):
        folder = tmp_path / str(len(copies))
        folder.mkdir()
        for i, document in enumerate(copies):
            (folder / f"{i}.txt").write_bytes(document)
        task = Text(paths=(str(folder),), block=64, holdout=10)
        read = {}
        for split in ("train", "test"):
            read[split] = b"".join(documents_of(task, split))
        count = len(copies)
        train, test = read["train"][: len(read["train"]) // count], read["test"][: len(read["test"]) // count]
        assert train + test == text and train * count == read["train"] and test * count == read["test"]
        assert train.endswith(b"\n") and len(text) // 10 <= len(test) < len(text) // 10 + 25
    folder = tmp_path / "one break"
    folder.mkdir()
    task = write(folder, [b"x" * 5200 + b"\n" + b"y" * 4800])
    assert len(documents_of(task, "test")[0]) == 5000, "half is held out, not what follows a line break far away"
    folder = tmp_path / "one line"
    folder.mkdir()
    task = write(folder, ["ü".encode() * 101])
    assert documents_of(task, "test")[0].decode() == "ü" * 51, "a character is not divided"


def test_links_are_followed_and_files_that_are_not_read_are_named(tmp_path):
    outside, corpus = tmp_path / "outside", tmp_path / "corpus"
    (outside / "deep").mkdir(parents=True)
    corpus.mkdir()
    (outside / "deep" / "a.txt").write_text("one")
    (outside / "UPPER.TXT").write_text("two")
    (outside / "b.jsonl.gz").write_bytes(b"packed")
    (outside / "README").write_text("no suffix")
    (corpus / "linked").symlink_to(outside)
    (corpus / "again").symlink_to(outside / "deep")
    (corpus / "file.txt").symlink_to(outside / "UPPER.TXT")
    (outside / "deep" / "loop").symlink_to(corpus)
    (corpus / "gone.txt").symlink_to(tmp_path / "nothing")
    task = Text(paths=(str(corpus),), block=8, holdout=2)
    assert sorted(path.resolve().name for path in find((str(corpus),))) == ["UPPER.TXT", "a.txt"]
    [note] = task.notes()
    assert note.startswith("left out: 1 without suffix, 1 .gz, 1 no file; read are files ending in .txt,")
    (corpus / "gone.txt").unlink()
    assert Text(paths=(str(outside / "deep" / "a.txt"),)).notes() == []


def tokenizer_file(folder, model=None):
    """A tokenizer.json of words, and the paths of a text and of itself as parameters of the task."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(model or models.WordLevel({"to": 0, "be": 1, "or": 2, "not": 3, "?": 4}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer, folder / "tokenizer.json"


def test_tokenizer_file(tmp_path):
    tokenizer, path = tokenizer_file(tmp_path)
    tokenizer.save(str(path))
    loaded = FileTokenizer(str(path))
    assert (loaded.vocabulary.size, loaded.vocabulary.pad, loaded.bos) == (7, 6, 5)
    assert loaded.encode(b"to be or not to be").tolist() == [5, 0, 1, 2, 3, 0, 1]
    (tmp_path / "a.txt").write_text("to be or not to be " * 2)
    task = Text(paths=(str(tmp_path / "a.txt"),), block=4, holdout=2, tokenizer=str(path))
    blocks = list(task.blocks("train", None, 0))
    assert [block["tokens"].tolist() for block in blocks] == [[[5, 0, 1, 2]], [[3, 0, 1]]]
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        Text(paths=(str(tmp_path / "a.txt"),), tokenizer=str(tmp_path / "a.txt")).vocabulary()


def test_truncation_and_padding_of_a_tokenizer_file_do_not_touch_documents(tmp_path):
    tokenizer, path = tokenizer_file(tmp_path)
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(path))
    assert FileTokenizer(str(path)).encode(b"to be or not to be").tolist() == [5, 0, 1, 2, 3, 0, 1]


def test_the_text_of_a_special_token_is_text(tmp_path):
    """A document about tokenizers must not end where it mentions the end of a document; decoding shows special tokens."""
    from tokenizers import AddedToken, models

    letters = {letter: i for i, letter in enumerate("<|end>ofx")}
    tokenizer, path = tokenizer_file(tmp_path, models.BPE(vocab=letters, merges=[]))
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    tokenizer.save(str(path))
    loaded = FileTokenizer(str(path))
    assert loaded.bos == 10
    ids = loaded.encode(b"x<|end|>x").tolist()
    assert ids == [10, *(letters[letter] for letter in "x<|end|>x")]
    assert "<|end|>" in loaded.decode([8, 9, 8])


def test_ids_with_gaps(tmp_path):
    from tokenizers import models

    tokenizer, path = tokenizer_file(tmp_path, models.WordLevel({"to": 0, "be": 7, "?": 3}, unk_token="?"))
    tokenizer.save(str(path))
    loaded = FileTokenizer(str(path))
    assert (loaded.bos, loaded.vocabulary.pad, loaded.vocabulary.size) == (8, 9, 10)
    assert loaded.encode(b"to be").tolist() == [8, 0, 7]


def test_errors_name_the_file(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="paths is empty"):
        Text()
    with pytest.raises(ValueError, match="no file ending in"):
        Text(paths=(str(tmp_path),))
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"body": "wrong"}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 2 has no field"):
        list(Text(paths=(str(bad),)).blocks("train", None, 0))
    bad.write_text("{\n")
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 1 is not valid JSON"):
        list(Text(paths=(str(bad),)).blocks("train", None, 0))
    (tmp_path / "x.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match="pip install pyarrow"):
        list(Text(paths=(str(tmp_path / "x.parquet"),)).blocks("train", None, 0))


def test_parquet(tmp_path):
    import pyarrow
    from pyarrow import parquet

    for name, content, message in (
        ("a", pyarrow.table({"text": [b"bytes"]}), 'the column "text" has the type binary; it must be a string'),
        ("b", pyarrow.table({"body": ["x"]}), 'no column "text"; its columns are body'),
        ("c", None, "cannot be read as a .parquet file"),
    ):
        path = tmp_path / f"{name}.parquet"
        path.write_bytes(b"PAR1") if content is None else parquet.write_table(content, path)
        with pytest.raises(ValueError, match=f"{path.name}.*{message}"):
            list(Text(paths=(str(path),)).blocks("train", None, 0))
        path.unlink()
    parquet.write_table(pyarrow.table({"text": ["one", None, "two"]}), tmp_path / "x.parquet")
    task = Text(paths=(str(tmp_path),), block=4, holdout=2)
    texts = [document for split in ("train", "test") for document in documents_of(task, split)]
    assert sorted(texts) == [b"one", b"two"]
