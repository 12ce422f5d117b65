"""The state of a session as a safetensors file: fast weights, convolution tails, caches and unfinished windows by leaf name."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import torch

from sleeptrain.errors import UserError
from sleeptrain.inference.rows import FILL
from sleeptrain.inference.session import SleepSession
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.state import State

FORMAT = "sleeptrain session state 1"


def save_state(session: SleepSession, path: str | Path) -> None:
    """Write the state of all rows to a file, which appears when it is complete.

    A tensor has the shape of its leaf with the rows before it: fast weights are `layers.<i>.fast` [rows, value_heads, d_k, d_v]
    in float32. Raises UserError where the file cannot be written.
    """
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in session.state().tensors.items()}
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(save(tensors, _metadata(session)))
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error}") from None


def load_state(session: SleepSession, path: str | Path) -> None:
    """Continue from the state in a file, on any device; the rows are those of the file.

    Raises UserError if it is not a state of a session with these weights and windows. The number of passes may differ.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt", device=str(session.logits.device)) as file:
            _check_metadata(file.metadata() or {}, _metadata(session), path)
            expected = {leaf.name for leaf in session.state().spec}
            if wrong := sorted(expected.symmetric_difference(file.keys())):
                raise UserError(f"{path}: tensor {wrong[0]} is missing or unknown; save it again")
            tensors = {name: file.get_tensor(name) for name in expected}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as a state of a session: {error}") from None
    _check_tensors(tensors, session.state(), path)
    session.load_state(session.state().replace(tensors))


def _metadata(session: SleepSession) -> dict[str, str]:
    windows = asdict(session.sleep) | {"passes": None, "gradient": None}  # these do not change what a state means
    return {
        "format": FORMAT,
        "dtype": str(session.model.embed.weight.dtype),
        "weights": weights_id(session.model),
        "sleep": json.dumps(windows, sort_keys=True),
        "model": json.dumps(asdict(session.model.config), sort_keys=True),
    }


def weights_id(model: LanguageModel) -> str:
    """An identifier of a model's weights, the same on every machine: the hash of names, shapes, dtypes and 16 values of each."""
    found = hashlib.sha256()
    for name, parameter in model.named_parameters():
        found.update(f"{name} {list(parameter.shape)} {parameter.dtype}".encode())
        values = parameter.detach().flatten()[:16].cpu().contiguous()
        found.update(values.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:32]


def _check_metadata(found: dict[str, str], expected: dict[str, str], path: str | Path) -> None:
    """Raise UserError where a file is of another kind, or of a session with another model or other windows."""
    if found.get("format") != FORMAT:
        raise UserError(
            f"{path} is not a state of a session (its format is {found.get('format')!r}, not {FORMAT!r}); give a file that a "
            "session saved"
        )
    for part in ("model", "sleep"):
        if found.get(part) != expected[part]:
            raise UserError(f"{path} was saved with {_difference(found.get(part, '{}'), expected[part], part)}")
    if found.get("dtype") != expected["dtype"]:
        raise UserError(f"{path} was saved in {found.get('dtype')}, and this model computes in {expected['dtype']}")
    if found.get("weights") != expected["weights"]:
        raise UserError(
            f"{path} was saved with other weights of a model of this shape; open the checkpoint that read it"
        )


def _difference(found: str, expected: str, part: str) -> str:
    """The first setting that differs between two sections in JSON."""
    try:
        theirs, ours = _flat(json.loads(found), part), _flat(json.loads(expected), part)
    except (ValueError, AttributeError):
        return f"a damaged section {part}"
    name = next(name for name in sorted(theirs | ours) if theirs.get(name) != ours.get(name))
    return f"{name} = {theirs.get(name)}, and this model has {ours.get(name)}"


def _flat(section: dict[str, object], prefix: str) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in section.items():
        flat |= _flat(value, f"{prefix}.{name}") if isinstance(value, dict) else {f"{prefix}.{name}": value}
    return flat


def _check_tensors(tensors: dict[str, torch.Tensor], state: State, path: str | Path) -> None:
    """Raise UserError, naming a tensor, unless the leaves have their shapes and dtypes, and counts and tokens that are possible."""
    leaves = {leaf.name: leaf for leaf in state.spec}
    if wrong := sorted(tensors.keys() ^ leaves.keys()):
        raise UserError(
            f"{path} {'lacks' if wrong[0] in leaves else 'has the unknown'} tensor {wrong[0]}; save it again"
        )
    rows = {len(tensor) for tensor in tensors.values() if tensor.ndim}
    for name, leaf in leaves.items():
        tensor = tensors[name]
        wanted = [f"up to {size}" if leaf.timed and i == 0 else str(size) for i, size in enumerate(leaf.shape)]
        fits = tensor.ndim == 1 + len(leaf.shape) and all(
            have == want or (leaf.timed and i == 0 and have <= want)
            for i, (have, want) in enumerate(zip(tensor.shape[1:], leaf.shape, strict=True))
        )
        if not fits or len(rows) != 1 or tensor.dtype != leaf.dtype:
            raise UserError(
                f"{path}: tensor {name} is {tensor.dtype} {list(tensor.shape)}, and must be {leaf.dtype} [rows, "
                f"{', '.join(wanted)}] with the rows of the others"
            )
    fill, before, tokens = tensors[FILL], tensors["live.before"], tensors["live.tokens"]
    for name, right in (
        (FILL, bool(((fill >= 0) & (fill <= tokens.shape[1])).all())),
        ("live.before", bool(((before >= 0) & (before % leaves["live.tokens"].shape[0] == 0)).all())),
        ("live.tokens", bool(((tokens >= 0) & (tokens < leaves["live.logits"].shape[0])).all())),
    ):
        if not right:
            raise UserError(f"{path}: tensor {name} has values that no session writes; save it again")
