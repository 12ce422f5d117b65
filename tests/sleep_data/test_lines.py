"""Lines of files: every line of a divided file belongs to one part, and compressed data that is cut off is an error."""

import gzip
import random

import pytest

from sleep_data import lines as module
from sleep_data.lines import chunks, lines, whole_lines

END = 1 << 62


def zst(data):
    import zstandard

    return zstandard.ZstdCompressor().compress(data)


@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
def test_every_line_belongs_to_one_part(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)
    generator = random.Random(0)
    for _ in range(30):
        text = "".join(generator.choice("ab\n") for _ in range(40)).encode()
        path = tmp_path / "a.jsonl"
        path.write_bytes(text)
        expected = text.split(b"\n")
        expected = expected if expected[-1] else expected[:-1]
        size = generator.randrange(1, 20)
        found = [one for at in range(0, len(text), size) for one in lines(path, at, at + size)]
        assert [line for _, line in found] == expected
        assert [text[at : at + len(line)] for at, line in found] == expected


@pytest.mark.parametrize("size", [1, 3, 11, 1000])
def test_pieces_of_whole_lines_divide_no_character(size):
    for text in ("naïve ü\n東京\n\n— end", "ü" * 40, "\n", ""):
        data = text.encode()
        pieces = list(whole_lines(data[at : at + size] for at in range(0, len(data), size)))
        assert b"".join(pieces) == data and all(piece.endswith(b"\n") for piece in pieces[:-1])
        assert "".join(piece.decode() for piece in pieces) == text


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_compressed_files_of_several_frames(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)
    for name, compress in (("a.txt.gz", gzip.compress), ("a.txt.zst", zst)):
        path = tmp_path / name
        path.write_bytes(compress(b"one\ntwo") + compress(b"") + compress(b"\nthree"))
        assert b"".join(chunks(path)) == b"one\ntwo\nthree"
        assert [line for _, line in lines(path, 0, END)] == [b"one", b"two", b"three"]


@pytest.mark.parametrize(("name", "compress"), [("a.txt.gz", gzip.compress), ("a.txt.zst", zst)])
def test_compressed_data_that_is_cut_off_or_damaged_is_an_error(tmp_path, name, compress):
    path, data = tmp_path / name, compress(random.Random(0).randbytes(5000))
    path.write_bytes(data[:-10])
    with pytest.raises(ValueError, match=f"{name} ends in the middle of its compressed data"):
        list(chunks(path))
    path.write_bytes(b"no compressed data")
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        list(chunks(path))


def test_a_long_line_is_divided_after_a_character(monkeypatch):
    monkeypatch.setattr(module, "LONGEST_PIECE", 10)
    text = ("x" + "東" * 20 + "\nshort\n" + "é" * 30).encode()
    pieces = list(whole_lines(text[at : at + 7] for at in range(0, len(text), 7)))
    assert b"".join(pieces) == text and max(map(len, pieces)) < 20
    assert "".join(piece.decode() for piece in pieces).encode() == text


def test_a_line_that_does_not_fit_into_memory_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 8)
    monkeypatch.setattr(module, "LONGEST_LINE", 20)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * 20 + b"\n" + b"y" * 40)
    with pytest.raises(
        ValueError, match=r"a\.jsonl: the line at byte 21 is longer than 0 MiB; put a document of that size"
    ):
        list(lines(path, 0, END))
