"""Documents of text files: one for each plain file, .jsonl line, and row of a .parquet or .arrow file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sleep_data.files import COMPRESSED, PLAIN, find
from sleep_data.files import kind as kind_of
from sleep_data.lines import chunks, lines, whole_lines
from sleep_data.pieces import Fields, Piece, Span
from sleep_data.pretokenized import TOKEN_READERS, shard_sizes

SPAN = 1 << 24
"""Bytes of a file that one process reads at a time, about, where a file can be divided."""


def spans(path: Path) -> list[Span]:
    """A file, divided where it is large and its format allows it. The spans depend on the file alone."""
    kind, size = kind_of(path), path.stat().st_size
    if kind == ".jsonl" and path.suffix.lower() not in COMPRESSED:
        return [Span(str(path), at, at + SPAN, min(SPAN, size - at)) for at in range(0, size, SPAN)]
    if kind == ".parquet":
        groups = _parquet(path).num_row_groups
        return [Span(str(path), group, group + 1, size // groups) for group in range(groups)]
    if kind == "index.json":
        return [Span(str(path), shard, shard + 1, bytes_) for shard, bytes_ in enumerate(shard_sizes(path))]
    if kind == ".idx":
        size = path.with_suffix(".bin").stat().st_size
    return [Span(str(path), 0, 1 << 62, size)]


ARROW_FILE = b"ARROW1"
"""First bytes of Arrow's format of files, which its streams do not have."""
NAME_FIELD = "name it with field=; files with another field are a build, and a source, of their own"


Divide = Callable[[Iterable[bytes]], Iterator[bytes]]
"""Makes pieces that can be encoded one by one of a text that comes in chunks (`Tokenizer.pieces`)."""


def read(span: Span, fields: Fields, divide: Divide) -> Iterator[Piece]:
    """The pieces of all documents of a span, in order; empty ones and rows without text included, as empty pieces.

    ValueError names the file and the place of what cannot be read.
    """
    path = Path(span.path)
    kind = kind_of(path)
    if kind in PLAIN:
        return _plain(path, divide)
    if kind == ".jsonl":
        return _jsonl(span, fields.text)
    if kind in (".parquet", ".arrow"):
        return _table(path, span, fields.text)
    return TOKEN_READERS[str(kind)](span, fields)


def texts(paths: Sequence[str], field: str = "text", key: str = "paths") -> Iterator[bytes]:
    """All texts under some paths, long ones in pieces that end after a line. ValueError, which names `key`, if a file cannot be read."""
    for path in find(paths, key):
        for span in spans(path):
            for piece in read(span, Fields(field, None), whole_lines):
                if isinstance(piece.data, bytes) and piece.data:
                    yield piece.data


def _plain(path: Path, divide: Divide) -> Iterator[Piece]:
    begins = True
    for data in divide(chunks(path)):
        yield Piece(data, begins)
        begins = False
    if begins:
        yield Piece(b"")


def _jsonl(span: Span, field: str) -> Iterator[Piece]:
    path = Path(span.path)
    for position, line in lines(path, span.start, span.stop):
        if not line.strip():
            continue
        where = f"{path}, the line at byte {position:,}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{where} is not valid JSON: {error}; correct or remove the line and build again"
            ) from None
        yield from _record(record, field, where)


def _record(record: Any, field: str, where: str) -> Iterator[Piece]:
    """The document of one line: a text, or a prompt and its answer."""
    record = record if isinstance(record, dict) else {}
    if field not in record and {"prompt", "answer"} <= set(record):
        for name in ("prompt", "answer"):
            if not isinstance(record[name], str):
                raise ValueError(f"{where}: {name!r} is no string; both prompt and answer must be strings")
        yield Piece(record["prompt"].encode(errors="replace"), scored=False)
        yield Piece(record["answer"].encode(errors="replace"), begins=False)
        return
    text = record.get(field, 0)
    if text is not None and not isinstance(text, str):
        found = f"has no field {field!r}; its fields are {', '.join(record) or 'none'}"
        if field in record:
            found = f"has {json.dumps(text)[:40]} in the field {field!r}, which must be a string"
        raise ValueError(f"{where} {found}; {NAME_FIELD}")
    yield Piece((text or "").encode(errors="replace"))


def _table(path: Path, span: Span, field: str) -> Iterator[Piece]:
    """The rows of a row group of a .parquet file, or of all batches of an .arrow file."""
    pyarrow = _pyarrow(path)
    try:
        if kind_of(path) == ".arrow":
            schema, batches = _arrow(path, pyarrow)
        else:
            file = _parquet(path)
            schema = file.schema_arrow
            batches = file.iter_batches(row_groups=range(span.start, span.stop), columns=[field])
    except pyarrow.ArrowException as error:
        raise _unreadable(path, error) from None
    if field not in schema.names:
        raise ValueError(f"{path} has no column {field!r}; its columns are {', '.join(schema.names)}; {NAME_FIELD}")
    kind = schema.field(field).type
    if str(kind) not in ("string", "large_string", "string_view"):
        raise ValueError(f"{path}: the column {field!r} has the type {kind}; it must be a string")
    try:
        for batch in batches:
            for text in batch.column(batch.schema.get_field_index(field)).to_pylist():
                yield Piece((text or "").encode(errors="replace"))
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} cannot be read as {path.suffix.lower()}: {error}; copy it again")


def _arrow(path: Path, pyarrow: Any) -> tuple[Any, Iterable[Any]]:
    """The schema and the batches of an .arrow file in either of Arrow's formats, a stream or a file."""
    with path.open("rb") as file:
        is_stream = file.read(len(ARROW_FILE)) != ARROW_FILE
    if is_stream:
        stream = pyarrow.ipc.open_stream(path)
        return stream.schema, stream
    opened = pyarrow.ipc.open_file(pyarrow.memory_map(str(path)))
    return opened.schema, (opened.get_batch(number) for number in range(opened.num_record_batches))


def _parquet(path: Path) -> Any:
    pyarrow = _pyarrow(path)
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise _unreadable(path, error) from None


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError:
        raise ValueError(f"{path} needs the package pyarrow: pip install pyarrow") from None
    return pyarrow
