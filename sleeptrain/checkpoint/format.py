"""The files of one checkpoint: what they hold, and how they are written, read and verified. No pickle is written or read.

step-00000100/
    part-00000.weights.safetensors    slices of parameters that rank 0 keeps, as fp32 vectors
    part-00000.moments.safetensors    the moments of the optimizer for these slices, which evaluation does not read
    part-00000.carried.safetensors    the state that its rows carry to the next step, if rows are lanes
    part-00000.json                   the place of every slice in its tensor, and the rank's own state
    config.yaml                       the resolved configuration, if it was given
    checkpoint.json                   the index: step, optimizer, state of the run, size and hash of every other file; and its own hash
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
import xxhash
from torch import Tensor

from sleeptrain.engine.state import MASTER
from sleeptrain.errors import UserError

Kind = Literal["weights", "moments", "carried"]
CARRIED: Literal["carried"] = "carried"
"""The key of the values of a slice of the state that rows carry to the next step."""
VERSION = 1
INDEX, CONFIG = "checkpoint.json", "config.yaml"
FILE_NAME = re.compile(r"part-\d{5}\.((weights|moments|carried)\.safetensors|json)|config\.yaml")
"""The names that an index may list: no path leads out of the folder of the checkpoint."""
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""The names of dtypes in a safetensors file."""
NO_OPTIMIZER = ""
"""`Index.optimizer` of a checkpoint of weights alone."""
CHUNK = 64 << 20
"""Bytes that are hashed and written at a time."""
READ_CHUNK = 1 << 20
"""Bytes that are read and hashed at a time: few enough to be hashed while they are in the processor's cache."""


class Damaged(Exception):
    """A file of a checkpoint is missing or differs from what was written. The message names the file."""


@dataclass(frozen=True)
class FileRecord:
    """What proves a file whole."""

    bytes: int
    xxh3: str
    """Its XXH3 hash of 128 bits, in hex."""


@dataclass(frozen=True)
class Index:
    """The content of checkpoint.json."""

    step: int
    processes: int
    """Number of ranks that wrote a part."""
    optimizer: str
    """Its name; NO_OPTIMIZER where there are weights alone, without moments."""
    optimizer_step: int
    state: dict[str, Any]
    """What the caller saved for all ranks together."""
    files: dict[str, FileRecord] = field(default_factory=dict)
    eval_loss: float | None = None
    """The loss on held-out data at this step; None where it was not evaluated."""


@dataclass(frozen=True)
class TensorLayout:
    """Dtype and shape of a tensor in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return prod(self.shape) * self.dtype.itemsize


def places_file(rank: int) -> str:
    """The name of the file with the places of a rank's slices."""
    return f"part-{rank:05d}.json"


def tensor_file(rank: int, kind: Kind) -> str:
    """The name of the file with the values of a rank's slices."""
    return f"part-{rank:05d}.{kind}.safetensors"


def kind_of(key: str) -> Kind:
    """In which of a rank's files the values of a key are."""
    return "weights" if key == MASTER else "carried" if key == CARRIED else "moments"


def check_files(folder: Path, index: Index, *, weights_only: bool = False, share: tuple[int, int] = (0, 1)) -> None:
    """Read the files that an index lists, only those with weights and places if `weights_only`. Raises Damaged at the first that differs.

    `share` (i, n): every n-th file from the i-th on.
    """
    names = [
        name
        for name in sorted(index.files)
        if not (weights_only and name.endswith((".moments.safetensors", ".carried.safetensors")))
    ]
    for name in names[share[0] :: share[1]]:
        check_file(folder / name, index.files[name])


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> FileRecord:
    """Write tensors on the CPU as a safetensors file, and flush it to the disk."""
    layouts = {name: TensorLayout(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    return stream_tensors(path, layouts, tensors.values())


def stream_tensors(path: Path, layouts: Mapping[str, TensorLayout], tensors: Iterable[Tensor]) -> FileRecord:
    """Write a safetensors file with `tensors`, which come one at a time in the order of `layouts`, and flush it to the disk.

    The library's own function hashes nothing, holds Python's global lock while it writes, so that training would wait, and needs
    all tensors at once.
    """
    header, position = dict[str, Any]({"__metadata__": {"format": "pt"}}), 0
    for name, layout in layouts.items():
        stop = position + layout.nbytes
        offsets = [position, stop]
        header[name] = {"dtype": DTYPES[layout.dtype], "shape": list(layout.shape), "data_offsets": offsets}
        position = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return _write(path, chain([len(text).to_bytes(8, "little") + text], _values(layouts, tensors)))


def _values(layouts: Mapping[str, TensorLayout], tensors: Iterable[Tensor]) -> Iterator[memoryview]:
    """The bytes of each tensor, which must be as its layout says."""
    for (name, layout), tensor in zip(layouts.items(), tensors, strict=True):
        assert (tensor.dtype, tuple(tensor.shape)) == (layout.dtype, layout.shape), name
        if tensor.numel():
            yield tensor.contiguous().view(-1).view(torch.uint8).numpy().data


def write_json(path: Path, body: Any) -> FileRecord:
    """Write a JSON value, and flush it to the disk."""
    return _write(path, [json.dumps(body).encode()])


def write_text(path: Path, text: str) -> FileRecord:
    """Write a text, and flush it to the disk."""
    return _write(path, [text.encode()])


def write_index(folder: Path, index: Index) -> None:
    """Write checkpoint.json, which makes `folder` a checkpoint, and flush both to the disk."""
    body = {"version": VERSION, **asdict(index)}
    write_json(folder / INDEX, {"checkpoint": body, "xxh3": _hash_of(body)})
    sync_folder(folder)


def read_index(folder: Path) -> Index:
    """Read checkpoint.json. Raises Damaged if it is missing or altered, UserError if a newer version wrote it."""
    path = folder / INDEX
    try:
        whole = json.loads(path.read_bytes())
        body, written = whole["checkpoint"], whole["xxh3"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise Damaged(f"{path} cannot be read ({error})") from None
    if _hash_of(body) != written:
        raise Damaged(f"{path} is not what was written: its hash differs")
    if body["version"] != VERSION:
        raise UserError(
            f"{path} has version {body['version']} of the format, and this program reads version {VERSION}; "
            "use the version of sleeptrain that wrote it"
        )
    del body["version"]
    index = Index(**body | {"files": {name: FileRecord(**record) for name, record in body["files"].items()}})
    if f"step-{index.step:08d}" != folder.name:
        raise Damaged(f"{path} belongs to step {index.step}, not to {folder.name}")
    if wrong := [name for name in index.files if not FILE_NAME.fullmatch(name)]:
        raise Damaged(f"{path} lists {wrong[0]!r}, which is no file of a checkpoint")
    return index


def check_size(path: Path, record: FileRecord) -> None:
    """Raise Damaged unless the file is there with the size that was written."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise Damaged(f"{path} cannot be read ({error.strerror})") from None
    if size != record.bytes:
        raise Damaged(f"{path} has {size:,} bytes, and {record.bytes:,} were written")


def check_file(path: Path, record: FileRecord) -> None:
    """Read the whole file. Raises Damaged unless it has the size and the hash that were written."""
    check_size(path, record)
    hasher, chunk = xxhash.xxh3_128(), memoryview(bytearray(READ_CHUNK))
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(chunk):
                hasher.update(chunk[:count])
    except OSError as error:
        raise Damaged(f"{path} cannot be read ({error.strerror})") from None
    if hasher.hexdigest() != record.xxh3:
        raise Damaged(f"{path} is not what was written: its hash differs")


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _hash_of(body: Any) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(body, sort_keys=True).encode())


def _write(path: Path, parts: Iterable[bytes | memoryview]) -> FileRecord:
    """Write and flush a file; its record comes from what was in memory, not from what a disk may have made of it."""
    hasher, size = xxhash.xxh3_128(), 0
    with path.open("wb", buffering=0) as file:
        for part in parts:
            for start in range(0, len(part), CHUNK):
                chunk = memoryview(part)[start : start + CHUNK]
                hasher.update(chunk)
                size += _write_all(file, chunk)
        os.fsync(file.fileno())
    return FileRecord(size, hasher.hexdigest())


def _write_all(file: Any, chunk: memoryview) -> int:
    """Write a chunk, which the system may take in several pieces; returns its size."""
    written = 0
    while written < len(chunk):
        written += file.write(chunk[written:])
    return len(chunk)
