"""A folder of safetensors files as one mapping of tensors, each read when it is asked for. No pickle is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from sleeptrain.convert.shards import INDEX
from sleeptrain.errors import UserError

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class TensorFiles:
    """The tensors of all safetensors files of a folder: those that its index lists, or all without an index."""

    def __init__(self, folder: Path) -> None:
        """Read the headers. Raises UserError where there are no tensors, a file is damaged, or two files have one tensor."""
        self._files: dict[str, Any] = {}
        self._file_of: dict[str, Path] = {}
        for path in _paths(folder):
            for name in self._open(path).keys():  # noqa: SIM118 (a handle of safetensors is no mapping)
                if name in self._file_of:
                    raise UserError(
                        f"tensor {name} is in {self._file_of[name]} and in {path}; remove one of these files"
                    )
                self._file_of[name] = path

    def names(self) -> list[str]:
        """The names of all tensors."""
        return list(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return tuple(self._open(self._file_of[name]).get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """The dtype of a tensor as safetensors names it, such as F32."""
        return str(self._open(self._file_of[name]).get_slice(name).get_dtype())

    def read(self, name: str) -> Tensor:
        """The values of a tensor, on the CPU."""
        tensor: Tensor = self._open(self._file_of[name]).get_tensor(name)
        return tensor

    def where(self, name: str) -> str:
        """The tensor and its file, for messages."""
        return f"{self._file_of[name]}: {name}"

    def _open(self, path: Path) -> Any:
        from safetensors import SafetensorError, safe_open

        if str(path) not in self._files:
            try:
                self._files[str(path)] = safe_open(path, "pt")
            except (OSError, SafetensorError) as error:
                raise UserError(f"{path} cannot be read as safetensors ({error}); copy it again") from None
        return self._files[str(path)]


def _paths(folder: Path) -> list[Path]:
    """The files of a folder. Raises UserError where there are none."""
    index = folder / INDEX
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            wrong = [name for name in names if Path(name).name != name]
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{index} cannot be read ({error}); copy it again") from None
        if wrong:
            raise UserError(f"{index} names {wrong[0]!r}, which is no file of this folder")
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise UserError(f"{folder} lacks {', '.join(missing)}, which {index.name} lists; copy the folder again")
        return [folder / name for name in names]
    if paths := sorted(folder.glob("*.safetensors")):
        return paths
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    why = f"; {pickles[0]} may be a pickle, which can run code and is not opened" if pickles else ""
    raise UserError(f"{folder} has no *.safetensors files{why}. Save the model as safetensors")
