"""Bytes and lines of plain and compressed files, in bounded memory."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

CHUNK = 1 << 20
"""Bytes that are read at once."""
LONGEST_PIECE = 1 << 24
"""Bytes from which a line is divided, where a text may be divided anywhere."""
LONGEST_LINE = 1 << 28
"""Bytes of a line, at most: a line is in memory several times while it is parsed."""


def chunks(path: Path, start: int = 0) -> Iterator[bytes]:
    """The decompressed bytes of a file from `start` on. ValueError if compressed data is damaged or ends too early."""
    suffix = path.suffix.lower()
    with path.open("rb") as file:
        file.seek(start)
        stream = iter(lambda: file.read(CHUNK), b"")
        yield from stream if suffix not in (".gz", ".zst") else _decompressed(path, stream)


def _decompressed(path: Path, stream: Iterator[bytes]) -> Iterator[bytes]:
    """Decompress the frames of a file one after the other.

    The stream readers of zstandard and of gzip's relatives take a file that was cut off for its end; the decompressor of a frame
    knows whether the frame is complete.
    """
    make, errors = _decompressor(path)
    frame: Any = None
    for data in stream:
        while data:
            frame = frame or make()
            try:
                yield frame.decompress(data)
            except errors as error:
                raise ValueError(f"{path} is damaged: {error}") from None
            data = b""
            if frame.eof:
                data, frame = frame.unused_data.lstrip(b"\0") if path.suffix == ".gz" else frame.unused_data, None
    if frame is not None:
        raise ValueError(f"{path} ends in the middle of its compressed data; copy it again")


def _decompressor(path: Path) -> tuple[Any, tuple[type[Exception], ...]]:
    """What makes the decompressor of a frame, and the errors it raises."""
    if path.suffix.lower() == ".gz":
        return lambda: zlib.decompressobj(wbits=31), (zlib.error,)
    try:
        import zstandard
    except ImportError:
        raise ValueError(f"{path} needs the package zstandard: pip install zstandard") from None
    return zstandard.ZstdDecompressor().decompressobj, (zstandard.ZstdError,)


def whole_lines(data: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces that end after a line, or in a line of more than LONGEST_PIECE bytes after any character."""
    rest = bytearray()
    for chunk in data:
        cut = len(rest) + chunk.rfind(b"\n") + 1 if b"\n" in chunk else 0
        rest += chunk
        if not cut and len(rest) > LONGEST_PIECE:
            cut = len(rest) - 1
            while cut and rest[cut] & 0xC0 == 0x80:  # inside a character of UTF-8
                cut -= 1
        if cut:
            yield bytes(rest[:cut])
            del rest[:cut]
    if rest:
        yield bytes(rest)


def lines(path: Path, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """(position of its first byte, line without its end) of every line that begins in [start, stop) of the decompressed bytes.

    ValueError if a line is longer than LONGEST_LINE bytes.
    """
    # A line begins at `start` only if the byte before it ends one.
    position = max(start - 1, 0)
    skip = start > 0
    rest = bytearray()
    for chunk in chunks(path, position):
        *parts, tail = chunk.split(b"\n")
        if parts:
            parts[0] = bytes(rest) + parts[0]
            rest.clear()
        rest += tail
        for line in parts:
            if position >= stop:
                return
            if not skip:
                yield position, line
            skip = False
            position += len(line) + 1
        if len(rest) > LONGEST_LINE:
            raise ValueError(
                f"{path}: the line at byte {position:,} is longer than {LONGEST_LINE >> 20} MiB; put a document of that size in a "
                ".txt file of its own"
            )
    if rest and not skip and position < stop:
        yield position, bytes(rest)
