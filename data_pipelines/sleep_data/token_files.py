"""Reads the tokens of a split from the token files of all parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from sleep_data.stream import Stream
from sleep_data.text import Split


@dataclass(frozen=True)
class TokenFiles:
    """The token files of all parts, and where the documents begin in them."""

    paths: tuple[str, ...]
    first: np.ndarray
    """int64 [parts + 1]: number of the first document of each part, and that of all documents."""
    starts: np.ndarray
    """int64 [documents]: position of the first token of each document in its file."""
    bos: int
    kind: np.dtype[Any]

    def save(self, folder: Path, splits: dict[str, Split]) -> None:
        """Write the arrays of the documents to a folder, from which processes map them into memory."""
        np.save(folder / "starts.npy", self.starts)
        for name, split in splits.items():
            arrays = {
                "document": split.document,
                "offset": split.offset,
                "ends": split.stream.ends,
                "prompts": split.stream.prompts,
            }
            for part, array in arrays.items():
                np.save(folder / f"{name}.{part}.npy", array)
        np.savez(folder / "files.npz", first=self.first, paths=np.array(self.paths), bos=self.bos, kind=str(self.kind))

    @classmethod
    def load(cls, folder: Path, name: str) -> tuple[TokenFiles, Split]:
        """What `save` wrote, and one split."""

        def mapped(part: str) -> np.ndarray:
            return np.asarray(np.load(folder / f"{part}.npy", mmap_mode="r"))

        with np.load(folder / "files.npz", allow_pickle=False) as small:
            files = cls(
                tuple(small["paths"].tolist()),
                small["first"],
                mapped("starts"),
                int(small["bos"]),
                np.dtype(str(small["kind"])),
            )
        stream = Stream(mapped(f"{name}.ends"), mapped(f"{name}.prompts"))
        return files, Split(mapped(f"{name}.document"), mapped(f"{name}.offset"), stream)

    def tokens(self, split: Split, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of the stream of a split."""
        result = np.empty(stop - start, self.kind)
        opened, file = -1, result
        for part, at, first, end, bos in self._runs(split, start, stop):
            if part != opened:
                opened, file = part, np.memmap(self.paths[part], self.kind, "r").view(np.ndarray)
            if bos:
                if start <= first < stop:
                    result[first - start] = self.bos
                first += 1
            low, high = max(first, start), min(end, stop)
            result[low - start : max(low, high) - start] = file[at + low - first : at + max(low, high) - first]
        return result

    def _runs(self, split: Split, start: int, stop: int) -> Iterator[tuple[int, int, int, int, bool]]:
        """Documents that follow each other in a file and in the stream: part, position in its file, first position in the stream and
        the one after the last, and whether a BOS is put before what is read."""
        inside = split.stream.inside(start, stop)
        documents, offsets = split.document[inside], split.offset[inside]
        ends, firsts = split.stream.ends[inside], split.stream.firsts(inside)
        files = np.searchsorted(self.first, documents, side="right") - 1
        follows = (
            (np.diff(documents) == 1) & (np.diff(files) == 0) & (np.diff(self.starts[documents]) == np.diff(firsts))
        )
        breaks = np.flatnonzero(~(follows & (offsets[1:] == 0) & (offsets[:-1] == 0))) + 1
        bounds: Sequence[int] = [0, *breaks.tolist(), len(documents)]
        for low, high in pairwise(bounds):
            at = int(self.starts[documents[low]] + offsets[low])
            yield int(files[low]), at, int(firsts[low]), int(ends[high - 1]), bool(offsets[low])
