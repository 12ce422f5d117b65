"""Documents of files and folders: one for each plain text file, .jsonl line or .parquet row."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

PLAIN = (".txt", ".md", ".py")
SUFFIXES = (*PLAIN, ".jsonl", ".parquet")


def find(paths: Sequence[str]) -> list[Path]:
    """All readable files under the given files and folders, each once, ordered by name within a folder.

    Links are followed. Hidden files and folders are skipped. ValueError if a path does not exist, a named file has an unknown
    suffix, or there is no file.
    """
    if not paths:
        raise ValueError("paths is empty; name at least one file or folder")
    files: dict[Path, Path] = {}
    for path, named in _walk(paths):
        if named and not path.exists():
            raise ValueError(f"paths: {path} does not exist")
        if named and not _is_readable(path):
            raise ValueError(f"paths: {path} ends in {path.suffix!r}; it must end in {', '.join(SUFFIXES)}")
        if _is_readable(path) and path.is_file():
            files.setdefault(path.resolve(), path)
    if not files:
        raise ValueError(f"paths: there is no file ending in {', '.join(SUFFIXES)} under {', '.join(map(str, paths))}")
    return list(files.values())


def left_out(paths: Sequence[str]) -> dict[str, int]:
    """Number of files under the given folders that are not read, by suffix ("" without one); "no file" for pipes and links to nothing."""
    counts: Counter[str] = Counter()
    for path, _ in _walk(paths):
        if not path.is_file():
            counts["no file"] += 1
        elif not _is_readable(path):
            counts[path.suffix] += 1
    return dict(sorted(counts.items()))


def _walk(paths: Sequence[str]) -> Iterator[tuple[Path, bool]]:
    """(file, whether `paths` names it) under the given files and folders, without hidden ones. Each folder is read once."""
    seen: set[Path] = set()
    for path in (Path(path).expanduser() for path in paths):
        if not path.is_dir():
            yield path, True
            continue
        for folder, subfolders, names in os.walk(path, followlinks=True):
            real = Path(folder).resolve()
            if real in seen:  # a link to a folder above it would be followed for ever
                subfolders.clear()
                continue
            seen.add(real)
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            yield from ((Path(folder, name), False) for name in sorted(names) if not name.startswith("."))


def _is_readable(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def read(path: Path) -> Iterator[bytes]:
    """The documents of one file, without empty ones."""
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        documents = _lines(path)
    elif suffix == ".parquet":
        documents = _rows(path)
    else:
        documents = iter([path.read_bytes()])
    return (document for document in documents if document)


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number} is not valid JSON: {error}") from None
            text = record.get("text") if isinstance(record, dict) else None
            if not isinstance(text, str):
                raise ValueError(f'{path}, line {number} has no field "text" with a string')
            yield text.encode(errors="replace")


def _rows(path: Path) -> Iterator[bytes]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError(f"{path} needs the package pyarrow: pip install pyarrow") from None
    try:
        file = parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} cannot be read as a .parquet file: {error}") from None
    if "text" not in file.schema_arrow.names:
        raise ValueError(f'{path} has no column "text"; its columns are {", ".join(file.schema_arrow.names)}')
    kind = file.schema_arrow.field("text").type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise ValueError(f'{path}: the column "text" has the type {kind}; it must be a string')
    for batch in file.iter_batches(columns=["text"]):
        for text in batch.column(0).to_pylist():
            yield (text or "").encode(errors="replace")
