"""Documents of text files of every format, and errors that name the place."""

import gzip
import json
import sys

import pytest

from sleep_data import documents as module
from sleep_data.documents import read, spans
from sleep_data.pieces import Fields

FIELDS = Fields("text", None)


def pieces(path, fields=FIELDS):
    return [piece for span in spans(path) for piece in read(span, fields, iter)]


def texts(path, fields=FIELDS):
    found = pieces(path, fields)
    assert all(piece.begins and piece.scored for piece in found)
    return [piece.data for piece in found]


def test_plain_files_are_documents(tmp_path):
    for name, data in (("a.txt", b"one\ntwo"), ("b.rs", b"fn main() {}"), ("c.md", b"")):
        (tmp_path / name).write_bytes(data)
        assert texts(tmp_path / name) == [data]
    (tmp_path / "d.md.gz").write_bytes(gzip.compress(b"three"))
    assert texts(tmp_path / "d.md.gz") == [b"three"]


def test_lines_are_documents_however_the_file_is_divided(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "thr\\u00e9e"}\n\n{"text": null}\n{"text": "", "n": 1}\n{"text": "four"}')
    expected = ["thrée".encode(), b"", b"", b"four"]
    assert texts(path) == expected
    for size in (1, 10, 40):
        monkeypatch.setattr(module, "SPAN", size)
        assert texts(path) == expected and len(spans(path)) == -(-path.stat().st_size // size)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert texts(tmp_path / "a.jsonl.gz") == expected


def test_another_field(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"content": "one", "text": "no"}')
    assert texts(path, Fields("content", None)) == [b"one"]


def test_prompts_and_answers(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "2 + 2 =", "answer": " 4"}\n{"text": "plain"}')
    assert [tuple(piece) for piece in pieces(path)] == [
        (b"2 + 2 =", True, False), (b" 4", False, True), (b"plain", True, True),
    ]  # fmt: skip


def test_rows_of_tables_are_documents(tmp_path):
    import pyarrow
    from pyarrow import ipc, parquet

    table = pyarrow.table({"text": ["one", None, "two", "three"], "n": [1, 2, 3, 4]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    assert len(spans(tmp_path / "a.parquet")) == 2
    with ipc.new_stream(tmp_path / "b.arrow", table.schema) as writer:  # as `datasets` saves them
        writer.write_table(table, max_chunksize=3)
    with ipc.new_file(tmp_path / "c.ARROW", table.schema) as writer:  # as pyarrow.feather saves them
        writer.write_table(table, max_chunksize=2)
    for name in ("a.parquet", "b.arrow", "c.ARROW"):
        assert texts(tmp_path / name) == [b"one", b"", b"two", b"three"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"body": "wrong"}',
            r"the line at byte 17 has no field 'text'; its fields are body; name it with field=; files with another field are a build",
        ),
        ('{"text": {"a": 5}}', r"""has \{"a": 5\} in the field 'text', which must be a string; name it with field="""),
        ("[1]", "has no field 'text'; its fields are none"),
        ("{", "the line at byte 17 is not valid JSON: .*; correct or remove the line and build again"),
        ('{"prompt": "x", "answer": 4}', "'answer' is no string"),
    ],
)
def test_wrong_lines(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "fine"}\n' + line)
    with pytest.raises(ValueError, match=rf"bad\.jsonl, .*{message}"):
        pieces(path)
    for invalid in (b'{"text": "\xff"}', b"[" * 100_000):  # the latter is nested too deep for Python
        path.write_bytes(invalid)
        with pytest.raises(ValueError, match=r"bad\.jsonl, the line at byte 0 is not valid JSON"):
            pieces(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"text": [b"bytes"]}, "the column 'text' has the type binary; it must be a string"),
        ({"body": ["x"]}, "no column 'text'; its columns are body"),
        (None, "cannot be read as"),
    ],
)
@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_wrong_tables(tmp_path, suffix, content, message):
    import pyarrow
    from pyarrow import ipc, parquet

    path = tmp_path / f"bad{suffix}"
    if content is None:
        path.write_bytes(b"PAR1")
    elif suffix == ".parquet":
        parquet.write_table(pyarrow.table(content), path)
    else:
        table = pyarrow.table(content)
        with ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(ValueError, match=f"{path.name}.*{message}"):
        pieces(path)


def test_a_table_that_is_damaged_behind_its_beginning_is_named(tmp_path):
    import pyarrow
    from pyarrow import ipc, parquet

    table = pyarrow.table({"text": [f"{number} " * 50 for number in range(400)]})
    with ipc.new_stream(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=50)
    content = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "a.arrow").write_bytes(content[: len(content) // 2])
    parquet.write_table(table, tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content[:100] + bytes(len(content) // 2) + content[100 + len(content) // 2 :])
    for name in ("a.arrow", "a.parquet"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read as {name[1:]}: .*; copy it again"):
            pieces(tmp_path / name)


def test_tables_of_string_views(tmp_path):
    import pyarrow
    from pyarrow import ipc

    table = pyarrow.table({"text": pyarrow.array(["one", "two"]).cast(pyarrow.string_view())})
    with ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    assert texts(tmp_path / "a.arrow") == [b"one", b"two"]


def test_missing_packages(tmp_path, monkeypatch):
    for name, package in (("x.parquet", "pyarrow"), ("x.jsonl.zst", "zstandard")):
        (tmp_path / name).write_bytes(b"data")
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ValueError, match=f"pip install {package}"):
            pieces(tmp_path / name)


def test_json_with_lone_surrogates(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "\ud800x"}))
    assert texts(path) == [b"?x"]
