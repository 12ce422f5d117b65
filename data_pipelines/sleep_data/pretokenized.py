"""Documents that are token ids already: .npy arrays, Megatron-LM's .bin and .idx files, MDS shards."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from sleep_data.pieces import Fields, Piece, Span

MEGATRON = b"MMIDIDX\x00\x00"
"""First bytes of an index of Megatron-LM."""
AT_ONCE = 1 << 20
"""Token ids of a piece, at most."""


def _pieces(ids: np.ndarray, separator: int | None, path: str) -> Iterator[Piece]:
    """The documents of an array of ids, which end after each separator."""
    if ids.ndim != 1 or ids.dtype.kind not in "ui":
        raise ValueError(
            f"{path} holds {ids.dtype} of shape {list(ids.shape)}; token ids are integers of one dimension"
        )
    begins = True
    for start in range(0, len(ids), AT_ONCE):
        part = np.asarray(ids[start : start + AT_ONCE])
        *ended, rest = np.split(part, [] if separator is None else np.flatnonzero(part == separator) + 1)
        for document in ended:
            yield Piece(document, begins)
            begins = True
        if len(rest):
            yield Piece(rest, begins)
            begins = False
    if not len(ids):
        yield Piece(np.zeros(0, np.int64))


def _npy(span: Span, fields: Fields) -> Iterator[Piece]:
    try:
        ids = np.load(span.path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{span.path} cannot be read as an .npy file: {error}") from None
    yield from _pieces(ids, fields.separator, span.path)


def _megatron(span: Span, fields: Fields) -> Iterator[Piece]:
    """Documents of Megatron-LM's indexed data set: runs of sequences."""
    # Checked here, since the destructor of a data set that megatron-core cannot open prints a stack trace.
    with open(span.path, "rb") as file:
        if file.read(len(MEGATRON)) != MEGATRON:
            raise ValueError(f"{span.path} is no index of an indexed data set of Megatron-LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of optional packages that reading does not need
        from megatron.core.datasets.indexed_dataset import IndexedDataset
    data = IndexedDataset(span.path.removesuffix(".idx"))
    bounds = data.document_indices.tolist()
    for first, stop in pairwise(bounds):
        sequences = [np.asarray(data[number]) for number in range(first, stop)]
        yield from _pieces(
            np.concatenate(sequences) if sequences else np.zeros(0, np.int32), fields.separator, span.path
        )


def shard_sizes(index: Path) -> list[int]:
    """Bytes of the shards of an MDS index. ValueError if it is no such index."""
    return [shard["raw_data"]["bytes"] for shard in _shards(index)]


def _shards(index: Path) -> list[dict[str, Any]]:
    try:
        return list(json.loads(index.read_text())["shards"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{index} cannot be read as an index of MDS shards: {error!r}") from None


def _mds(span: Span, fields: Fields) -> Iterator[Piece]:
    """The samples of one shard: their ids in the column "tokens" (arrays, or the bytes of int64), or their text."""
    from sleep_data.patches.streaming_import import import_streaming

    import_streaming()
    from streaming.base.compression import decompress
    from streaming.base.format import reader_from_json

    index = Path(span.path)
    description = _shards(index)[span.start]
    column = next((name for name in ("tokens", fields.text) if name in description["column_names"]), None)
    if column is None:
        names = ", ".join(description["column_names"])
        raise ValueError(
            f"{index} has no column 'tokens' or {fields.text!r}; its columns are {names}; name it with field="
        )
    with tempfile.TemporaryDirectory() as folder:
        where = index.parent
        raw, zipped = description["raw_data"]["basename"], description["zip_data"]
        if not (where / raw).exists() and zipped:
            content = (where / zipped["basename"]).read_bytes()
            (Path(folder) / raw).write_bytes(decompress(description["compression"], content))
            where = Path(folder)
        reader = reader_from_json(str(where), None, description)
        for number in range(reader.samples):
            value = reader.get_item(number)[column]
            if isinstance(value, str):
                yield Piece(value.encode(errors="replace"))
            else:
                ids = np.frombuffer(value, np.int64) if isinstance(value, bytes) else value
                yield from _pieces(ids, fields.separator, str(where / raw))


TOKEN_READERS: dict[str, Callable[[Span, Fields], Iterator[Piece]]] = {
    ".npy": _npy,
    ".idx": _megatron,
    "index.json": _mds,
}
"""Readers by the kind of file."""
