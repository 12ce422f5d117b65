"""Files of a corpus: which are read, in which order, and which are left out."""

import pytest

from sleep_data.files import find, left_out


def names(*paths):
    return [path.name for path in find([str(path) for path in paths])]


def test_files_are_read_by_their_suffix_in_the_order_of_their_names(tmp_path):
    for name in (
        "b.md",
        "a.py",
        "c.jsonl",
        "d.bin",
        ".hidden.txt",
        "e.txt.gz",
        "f.jsonl.zst",
        "g.gz",
        "cache-1.arrow",
        "index.json",
    ):
        (tmp_path / name).write_text("{}")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "A.TXT").write_text("text")
    assert names(tmp_path) == ["a.py", "b.md", "c.jsonl", "e.txt.gz", "f.jsonl.zst", "A.TXT"]
    assert left_out([str(tmp_path)]) == {".arrow": 1, ".bin": 1, ".gz": 1, ".json": 1}
    assert names(tmp_path / "b.md", tmp_path) == ["b.md", "a.py", "c.jsonl", "e.txt.gz", "f.jsonl.zst", "A.TXT"]


def test_links_are_followed_once(tmp_path):
    outside, corpus = tmp_path / "outside", tmp_path / "corpus"
    (outside / "deep").mkdir(parents=True)
    corpus.mkdir()
    (outside / "deep" / "a.txt").write_text("one")
    (outside / "b.txt").write_text("two")
    (corpus / "linked").symlink_to(outside)
    (corpus / "again").symlink_to(outside / "deep")
    (corpus / "file.txt").symlink_to(outside / "b.txt")
    (outside / "deep" / "loop").symlink_to(corpus)
    (corpus / "gone.txt").symlink_to(tmp_path / "nothing")
    assert sorted(path.resolve().name for path in find([str(corpus)])) == ["a.txt", "b.txt"]
    assert left_out([str(corpus)]) == {"no file": 1}


def test_files_that_belong_to_one_that_is_read_are_not_left_out(tmp_path):
    (tmp_path / "a.idx").write_bytes(b"")
    (tmp_path / "a.bin").write_bytes(b"")
    (tmp_path / "mds").mkdir()
    (tmp_path / "mds" / "index.json").write_text('{"shards": [{"format": "mds"}]}')
    (tmp_path / "mds" / "shard.00000.mds.zstd").write_bytes(b"")
    assert names(tmp_path) == ["a.idx", "index.json"] and left_out([str(tmp_path)]) == {}


def test_errors_name_the_path(tmp_path):
    with pytest.raises(ValueError, match="paths is empty"):
        find([])
    with pytest.raises(ValueError, match="there is no file to read under"):
        find([str(tmp_path)])
    with pytest.raises(ValueError, match="missing does not exist"):
        find([str(tmp_path / "missing")])
    (tmp_path / "a.doc").write_text("text")
    with pytest.raises(ValueError, match=r"a\.doc ends in '\.doc'; read are \.txt"):
        find([str(tmp_path / "a.doc")])
