"""Faults of Hugging Face folders, and the check that an import refuses them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sleeptrain.convert.import_hf import import_hf
from sleeptrain.errors import UserError


def rewrite(folder: Path, **changes: Tensor | None) -> None:
    """Write the tensors of a folder again with others in their place; None leaves one out."""
    state = load_file(folder / "model.safetensors") | changes
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, folder / "model.safetensors")


def truncate(folder: Path) -> None:
    """Cut off the end of the tensors' file."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def to_pickle(folder: Path) -> None:
    """Put a pickle in the place of the tensors' file."""
    (folder / "model.safetensors").unlink()
    torch.save({"weight": torch.zeros(1)}, folder / "pytorch_model.bin")


def check_refused(folder: Path, spoil: Callable[[Path], object], message: str) -> None:
    """Spoil a folder, which is alone in its own, and check that its import says `message` and writes nothing."""
    spoil(folder)
    with pytest.raises(UserError, match=message):
        import_hf(folder, folder.parent / "ours")
    assert list(folder.parent.iterdir()) == [folder]
