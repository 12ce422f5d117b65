"""Files under the paths of a corpus: which are read, and in which order."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

PLAIN = (
    ".txt", ".md", ".rst", ".tex", ".py", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".go", ".rs", ".java", ".kt", ".scala", ".js",
    ".ts", ".jsx", ".tsx", ".rb", ".php", ".swift", ".lua", ".jl", ".r", ".sh", ".sql",
)  # fmt: skip
"""Files that hold one document."""
COMPRESSED = (".gz", ".zst")
"""Suffixes after that of a plain file or of .jsonl."""
TABLES = (".jsonl", ".parquet", ".arrow")
"""Files that hold a document in each line or row."""
TOKENS = (".npy", ".idx")
"""Files of token ids: an array; the index of Megatron-LM's format, whose tokens are in the .bin file beside it."""
MDS = "index.json"
"""The index of a folder of MDS shards."""
READ = (
    ".txt, .md, source code, .jsonl (these also .gz or .zst), .parquet, .arrow, .npy, .idx, and folders of MDS shards"
)


def kind(path: Path) -> str | None:
    """The suffix by which a file is read, without that of its compression; None if it is not read."""
    if path.name == MDS:
        return MDS if '"mds"' in path.read_text(errors="replace") else None
    if path.name.startswith("cache-") and path.suffix == ".arrow":
        return None  # what `datasets` computes from a data set and keeps in its folder
    suffix = path.suffix.lower()
    inner = path.with_suffix("").suffix.lower() if suffix in COMPRESSED else suffix
    allowed = (*PLAIN, ".jsonl") if suffix in COMPRESSED else (*PLAIN, *TABLES, *TOKENS)
    return inner if inner in allowed else None


def find(paths: Sequence[str], key: str = "paths") -> list[Path]:
    """All readable files under the given files and folders, each once, ordered by name within a folder. Errors name `key`.

    Links are followed. Hidden files and folders are skipped. ValueError if a path does not exist, a named file has an unknown
    suffix, or there is no file.
    """
    if not paths:
        raise ValueError(f"{key} is empty; name at least one file or folder")
    files: dict[Path, Path] = {}
    for path, named in _walk(paths):
        if named and not path.exists():
            raise ValueError(f"{key}: {path} does not exist")
        readable = path.is_file() and kind(path) is not None
        if named and not readable:
            raise ValueError(f"{key}: {path} ends in {path.suffix!r}; read are {READ}")
        if readable:
            files.setdefault(path.resolve(), path)
    if not files:
        raise ValueError(f"{key}: there is no file to read under {', '.join(map(str, paths))}; read are {READ}")
    return list(files.values())


def left_out(paths: Sequence[str]) -> dict[str, int]:
    """Number of files under the given folders that are not read, by suffix ("" without one); "no file" for pipes and links to nothing.

    Files that belong to one that is read do not count: shards of an MDS index, the .bin file of an .idx file.
    """
    counts: Counter[str] = Counter()
    for path, _ in _walk(paths):
        if not path.is_file():
            counts["no file"] += 1
        elif kind(path) is None and not _is_part_of_another(path):
            counts[path.suffix] += 1
    return dict(sorted(counts.items()))


def _is_part_of_another(path: Path) -> bool:
    if path.suffix == ".bin":
        return path.with_suffix(".idx").is_file()
    return ".mds" in path.suffixes and path.with_name(MDS).is_file()


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
