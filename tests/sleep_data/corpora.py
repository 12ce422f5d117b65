"""Corpora of tests: files that are written, and the documents that a folder of shards holds."""

import json
from pathlib import Path

from sleep_data.patches.streaming_import import import_streaming
from sleep_data.stream import from_shard, targets_of

BOS = 256


def blocks_in(folder: Path, split: str) -> list[dict]:
    """All blocks of a split, from its compressed shards."""
    import_streaming()
    from streaming.base.compression import decompress
    from streaming.base.format import reader_from_json

    blocks = []
    for shard in json.loads((folder / split / "index.json").read_text())["shards"]:
        raw = folder / split / shard["raw_data"]["basename"]
        raw.write_bytes(decompress("zstd", (folder / split / shard["zip_data"]["basename"]).read_bytes()))
        reader = reader_from_json(str(folder), split, shard)
        blocks += [from_shard(reader.get_item(i)) for i in range(reader.samples)]
        raw.unlink()
    return blocks


def documents_in(folder: Path, split: str, bos: int = BOS) -> list[list[int]]:
    """The tokens of every document of a split, without BOS."""
    tokens: list[int] = []
    starts: list[int] = []
    for block in blocks_in(folder, split):
        starts += [len(tokens) + start for start in block["starts"].tolist()]
        tokens += block["tokens"].tolist()
    pieces = [tokens[start:stop] for start, stop in zip(starts, [*starts[1:], len(tokens)], strict=True)]
    assert all(piece[0] == bos for piece in pieces) and sum(map(len, pieces)) == len(tokens)
    return [piece[1:] for piece in pieces]


def texts_in(folder: Path, split: str) -> list[bytes]:
    """The text of every document of a split of bytes."""
    return [bytes(ids) for ids in documents_in(folder, split)]


def predicted_in(folder: Path, split: str) -> list[int]:
    """All targets of a split, in order."""
    return [int(t) for block in blocks_in(folder, split) for t in targets_of(block) if t != -100]


def write_files(folder: Path, documents: list[bytes]) -> Path:
    """One .txt file for each document."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, document in enumerate(documents):
        (folder / f"{i:03}.txt").write_bytes(document)
    return folder
