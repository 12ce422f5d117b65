"""Documents of files and folders: one for each plain text file, .jsonl line or .parquet row."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

PLAIN = (".txt", ".md", ".py")
SUFFIXES = (*PLAIN, ".jsonl", ".parquet")


def find(paths: Sequence[str]) -> list[Path]:
    """All readable files under the given files and folders, each once, ordered by name within a folder.

    Hidden files and folders are skipped. ValueError if a path does not exist, a named file has an unknown suffix, or there
    is no file.
    """
    if not paths:
        raise ValueError("paths is empty; name at least one file or folder")
    files: dict[Path, None] = {}
    for path in map(Path, paths):
        if path.is_dir():
            for folder, subfolders, names in os.walk(path):
                subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
                for name in sorted(names):
                    if Path(name).suffix in SUFFIXES and not name.startswith("."):
                        files[Path(folder, name)] = None
        elif not path.exists():
            raise ValueError(f"paths: {path} does not exist")
        elif path.suffix not in SUFFIXES:
            raise ValueError(f"paths: {path} ends in {path.suffix!r}; it must end in {', '.join(SUFFIXES)}")
        else:
            files[path] = None
    if not files:
        raise ValueError(f"paths: there is no file ending in {', '.join(SUFFIXES)} under {', '.join(map(str, paths))}")
    return list(files)


def read(path: Path) -> Iterator[bytes]:
    """The documents of one file, without empty ones."""
    if path.suffix == ".jsonl":
        documents = _lines(path)
    elif path.suffix == ".parquet":
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
        from pyarrow import parquet
    except ImportError:
        raise ValueError(f"{path} needs the package pyarrow: pip install pyarrow") from None
    file = parquet.ParquetFile(path)
    if "text" not in file.schema_arrow.names:
        raise ValueError(f'{path} has no column "text"; its columns are {", ".join(file.schema_arrow.names)}')
    for batch in file.iter_batches(columns=["text"]):
        for text in batch.column(0).to_pylist():
            yield (text or "").encode(errors="replace")
