"""Inputs that are token ids already: arrays, indexed data sets that megatron-core writes, MDS shards."""

import numpy as np
import pytest
import torch

from sleep_data.documents import read, spans
from sleep_data.patches.streaming_import import import_streaming
from sleep_data.pieces import Fields
from sleep_data.pretokenized import AT_ONCE


def documents(path, separator=None):
    """The ids of the documents of a file."""
    found: list[list[int]] = []
    for span in spans(path):
        for piece in read(span, Fields("text", separator), iter):
            if piece.begins:
                found.append([])
            found[-1] += piece.data.tolist()
    return found


def by_separator(ids, separator):
    found, rest = [], []
    for token in ids:
        rest.append(token)
        if token == separator:
            found.append(rest)
            rest = []
    return found + ([rest] if rest else [])


@pytest.mark.parametrize("kind", ["uint16", "int32", "int64"])
def test_arrays(tmp_path, kind):
    ids = np.random.default_rng(0).integers(0, 30, AT_ONCE + 500).astype(kind)
    ids[AT_ONCE - 1] = 7
    np.save(tmp_path / "a.npy", ids)
    assert documents(tmp_path / "a.npy") == [ids.tolist()]
    assert documents(tmp_path / "a.npy", 7) == by_separator(ids.tolist(), 7)
    np.save(tmp_path / "a.npy", np.zeros(0, kind))
    assert documents(tmp_path / "a.npy") == [[]]


def test_wrong_arrays(tmp_path):
    for array, message in ((np.zeros((2, 2), int), r"int64 of shape \[2, 2\]"), (np.zeros(3), "float64 of shape")):
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(ValueError, match=rf"a\.npy holds {message}"):
            documents(tmp_path / "a.npy")
    (tmp_path / "a.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match=r"a\.npy cannot be read as an \.npy file"):
        documents(tmp_path / "a.npy")


@pytest.mark.parametrize("kind", [np.uint16, np.int32])
def test_indexed_data_sets_of_megatron(tmp_path, kind):
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(tmp_path / "a.bin"), dtype=kind)
    builder.add_document(torch.tensor([1, 2, 3, 4, 5]), [2, 3])
    builder.add_document(torch.tensor([6]), [1])
    builder.finalize(str(tmp_path / "a.idx"))
    assert documents(tmp_path / "a.idx") == [[1, 2, 3, 4, 5], [6]]
    (tmp_path / "a.idx").write_bytes(b"no index of any kind")
    with pytest.raises(ValueError, match=r"a\.idx is no index of an indexed data set of Megatron-LM"):
        documents(tmp_path / "a.idx")


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_mds_shards(tmp_path, compression):
    import_streaming()
    from streaming import MDSWriter

    samples = [np.arange(n, dtype=np.int64) for n in (5, 1, 40)]
    for encoding, value in (("bytes", lambda ids: ids.tobytes()), ("ndarray:int32", lambda ids: ids.astype(np.int32))):
        folder = tmp_path / encoding[:5]
        with MDSWriter(
            out=str(folder), columns={"tokens": encoding}, compression=compression, size_limit=200
        ) as writer:
            for ids in samples:
                writer.write({"tokens": value(ids)})
        assert len(spans(folder / "index.json")) > 1
        assert documents(folder / "index.json") == [ids.tolist() for ids in samples]
    with MDSWriter(out=str(tmp_path / "text"), columns={"text": "str"}, compression=compression) as writer:
        writer.write({"text": "naïve"})
    [piece] = [
        piece for span in spans(tmp_path / "text" / "index.json") for piece in read(span, Fields("text", None), iter)
    ]
    assert piece.data == "naïve".encode()
    with MDSWriter(out=str(tmp_path / "other"), columns={"image": "bytes"}) as writer:
        writer.write({"image": b""})
    with pytest.raises(ValueError, match="no column 'tokens' or 'text'; its columns are image"):
        documents(tmp_path / "other" / "index.json")
