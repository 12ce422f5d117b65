"""Text of samples of bytes, as `sleeptrain data build` writes them without a tokenizer file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sleep_data import manifest
from sleep_data.documents import read, spans
from sleep_data.files import MDS
from sleep_data.lines import whole_lines
from sleep_data.pieces import Fields


def is_built(path: Path) -> bool:
    """Whether a path is a folder that `sleeptrain data build` has written; a manifest.json alone may be another program's."""
    return (path / manifest.NAME).is_file() and (path / "train" / MDS).is_file()


def texts(folder: Path) -> Iterator[bytes]:
    """The text of every training sample, without padding and other ids that are no bytes.

    ValueError if the folder is damaged or its tokens are no bytes.
    """
    kind = manifest.read(folder)["tokenizer"]["kind"]
    if kind != "bytes":
        tokens = {"file": "ids of a tokenizer file"}.get(kind, kind)
        raise ValueError(
            f"{folder} holds {tokens}; a tokenizer is trained on text: build samples of bytes, without tokenizer="
        )
    for span in spans(folder / "train" / MDS):
        for piece in read(span, Fields("", None), whole_lines):
            ids = np.asarray(piece.data)
            yield ids[ids < 256].astype(np.uint8).tobytes()
