"""A long file without a line break: plain text is read in pieces, and a line of .jsonl that does not fit is refused by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sleep_data import lines
from sleep_data.text import Text
from sleep_data.text_build import build

SIZES = [pytest.param(8 << 20, marks=pytest.mark.slow), pytest.param(2 << 30, marks=pytest.mark.exhaustive)]
BUILD = """
import sys
from pathlib import Path
from sleep_data.text import Text
from sleep_data.text_build import build
from sleeptrain.train.throughput import peak_memory
source, out, tokenizer = sys.argv[1:]
try:
    body = build(Text(paths=(source,), tokenizer=tokenizer or None), Path(out), {"train": None, "test": None})
    print(sum(split["tokens"] for split in body["splits"].values()))
except ValueError as error:
    print(error)
print(peak_memory())
"""


def built(path: Path, tokenizer: Path | None = None) -> tuple[str, int]:
    """What a build in a process of its own prints, and the bytes of memory at its peak."""
    words = [sys.executable, "-c", BUILD, str(path), str(path.with_name("out")), str(tokenizer or "")]
    said, peak = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    return said, int(peak)


def sparse(path: Path, size: int, start: bytes = b"") -> Path:
    """A file of `size` bytes in one line, which takes no room on the disk: after the start all are 0."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)
    return path


def words(path: Path, size: int) -> Path:
    """A file of at least `size` bytes: words in one line."""
    text = b"one line of words that has no end, number 1234567 of many; " * (1 << 14)
    with path.open("wb") as file:
        while file.tell() < size:
            file.write(text)
    return path


@pytest.mark.parametrize("size", SIZES)
def test_plain_text_in_one_line_is_read_in_bounded_memory(tmp_path: Path, size: int) -> None:
    said, peak = built(sparse(tmp_path / "long.txt", size))
    assert int(said) == size + 2, "a part of the document, and another one for its held-out end"
    assert peak < 1 << 30


@pytest.mark.parametrize("size", [SIZES[0], pytest.param(128 << 20, marks=pytest.mark.exhaustive)])
def test_a_tokenizer_file_encodes_a_long_line_in_bounded_memory(tmp_path: Path, size: int) -> None:
    from sleep_data.train_tokenizer import train_tokenizer

    path = words(tmp_path / "long.txt", size)
    train_tokenizer([str(words(tmp_path / "sample.txt", 1 << 20))], 300, tmp_path / "tokenizer.json")
    said, peak = built(path, tmp_path / "tokenizer.json")
    assert int(said) > size // 10 and peak < 1 << 30


@pytest.mark.exhaustive
def test_two_gigabytes_in_a_line_of_jsonl_are_refused_in_bounded_memory(tmp_path: Path) -> None:
    said, peak = built(sparse(tmp_path / "long.jsonl", 2 << 30, b'{"text": "'))
    assert "long.jsonl: the line at byte 0 is longer than 256 MiB; put a document of that size in a .txt file" in said
    assert peak < 1 << 30 and not (tmp_path / "out").exists()


def test_a_line_of_jsonl_that_is_too_long_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LONGEST_LINE", 1 << 20)
    path = sparse(tmp_path / "long.jsonl", 4 << 20, b'{"text": "a"}\n{"text": "')
    with pytest.raises(ValueError, match=r"long\.jsonl: the line at byte 14 is longer than 1 MiB; put a document"):
        build(Text(paths=(str(path),)), tmp_path / "out", {"train": None, "test": None})
    assert not (tmp_path / "out").exists()
