"""Ouro (arXiv 2510.25741): its config.json and tensors as a model of ours, and grafted Gated DeltaNet blocks that start as the identity."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sleeptrain.convert.folder_reading import FolderReading, described, text_vocabulary
from sleeptrain.convert.hf_config import naming, without_problems
from sleeptrain.convert.qwen3_5 import MappedTensor, norm_with_one, same
from sleeptrain.data.manifest import WINDOWS
from sleeptrain.errors import UserError
from sleeptrain.model.config import AttentionConfig, DeltaNetConfig, MlpConfig, Model, expand
from sleeptrain.model.init import initial
from sleeptrain.program import Loop, Sleep
from sleeptrain.recipe.load_trained import parameter_shapes

DROPPED = {
    r"model\.early_exit_gate\.(weight|bias)": "the early exit gate; sleep makes a fixed number of passes, and prediction one"
}
"""Tensors that are left out, and why."""
NORMS = {
    "norm1": "input_layernorm", "out1": "input_layernorm_2",
    "norm2": "post_attention_layernorm", "out2": "post_attention_layernorm_2",
}  # fmt: skip
"""The norms of a block: ours, and theirs."""
GROUP = 4
"""Blocks of attention to each grafted block, by default."""


def read_folder(folder: Path, config: dict[str, Any], layers: str | None) -> FolderReading:
    """What a folder with this config.json says; `layers` as in `read_model`. Raises UserError for what sleeptrain cannot express."""
    source, ids = str(folder / "config.json"), text_vocabulary(folder).size
    model, sleep = read_model(config, source, layers, ids), read_sleep(config, source)
    horizon = 2 * sleep.max_passes * WINDOWS * sleep.window
    model = dataclasses.replace(model, deltanet=dataclasses.replace(model.deltanet, horizon=horizon))
    run = described(folder, model, sleep)
    blocks = [layer for layer, letter in enumerate(model.pattern) if letter == "G"]
    made = {
        name: partial(grafted, model, name, shape)
        for name, shape in parameter_shapes(run[0].value).items()
        if name.startswith(tuple(f"layers.{block}." for block in blocks))
    }
    added = (
        [f"Gated DeltaNet blocks {', '.join(map(str, blocks))}: they add nothing until they are trained"]
        if blocks
        else []
    )
    if model.vocab != (rows := config["vocab_size"]):
        added.append(f"ids {rows} to {ids - 1} in embedding and head: copies of id {new_row(config)}")
    return FolderReading(*run, mapped_tensors(model, config), DROPPED, made, tuple(added))


def read_model(config: Mapping[str, Any], source: str, layers: str | None, ids: int) -> Model:
    """The section `model:` of a config.json.

    layers   pattern with an A for every block of Ouro and a G for every grafted one; None: `default_layers`
    ids      of the vocabulary, for which embedding and head get rows if they have fewer

    Raises UserError, with `source`, for what sleeptrain cannot express, and for a pattern with another number of A.
    """
    with naming(source):
        if differences := list(_differences(config)):
            raise UserError([f"{source}: {difference}" for difference in differences])
        heads, width, depth = config["num_attention_heads"], config["hidden_size"], config["num_hidden_layers"]
        head_dim = config.get("head_dim") or width // heads
        attention = AttentionConfig(
            heads, config.get("num_key_value_heads") or heads, head_dim, rotary=1.0, theta=float(_theta(config)),
            gate=False, qk_norm=False,
        )  # fmt: skip
        model = Model(
            width, _checked_layers(layers, depth, source), attention, DeltaNetConfig(heads, heads, head_dim),
            MlpConfig(config["intermediate_size"]), max(config["vocab_size"], ids), config.get("tie_word_embeddings", False),
            norm="sandwich", eps=config.get("rms_norm_eps", 1e-6), init_std=config.get("initializer_range", 0.02),
        )  # fmt: skip
        return without_problems(model, source)


def read_sleep(config: Mapping[str, Any], source: str) -> Sleep:
    """The section `sleep:`: `total_ut_steps` passes, each from the features of the one before through the final norm."""
    with naming(source):
        sleep = Sleep(2048, config["total_ut_steps"], Loop(feedback="normed", trigger="every"))
        if problems := sleep.problems():
            raise UserError([f"{source}: total_ut_steps {problem.message}" for problem in problems])
        return sleep


def default_layers(depth: int) -> str:
    """A grafted block in the middle of every four blocks: what it reads has passed attention, and what it returns is read by attention."""
    whole, rest = divmod(depth, GROUP)
    half = GROUP // 2
    groups = f"({'A' * half}G{'A' * half})x{whole}" if whole else ""
    return groups + ("A" * (rest - rest // 2) + "G" + "A" * (rest // 2) if rest else "")


def mapped_tensors(model: Model, config: Mapping[str, Any]) -> list[MappedTensor]:
    """All tensors of the published layout that are used. They hold every parameter that is not of a grafted block.

    New rows of embedding and head are copies of the row of `new_row`: the logits of the other ids do not change.
    """
    assert model.vocab is not None
    width, rows, row = model.width, config["vocab_size"], new_row(config)
    mapped = [_extended("model.embed_tokens.weight", "embed.weight", (rows, width), model.vocab, row)]
    attention = [layer for layer, letter in enumerate(model.pattern) if letter == "A"]
    for theirs, ours in enumerate(attention):
        mapped += _block(model, f"layers.{ours}", f"model.layers.{theirs}")
    mapped.append(norm_with_one("model.norm.weight", "norm.weight", width))
    if not model.tie:
        mapped.append(_extended("lm_head.weight", "head.weight", (rows, width), model.vocab, row))
    return mapped


def new_row(config: Mapping[str, Any]) -> int:
    """The id whose rows of embedding and head the new ids begin with: that of the end of a text."""
    ids = (config.get(name) for name in ("eos_token_id", "bos_token_id"))
    return next((i for i in ids if isinstance(i, int) and 0 <= i < config["vocab_size"]), 0)


def grafted(model: Model, name: str, shape: Sequence[int]) -> Tensor:
    """The value of a parameter of a grafted block.

    The norms at the outputs of its branches have the weight 0 (stored as -1), so that the block adds nothing. An output projection of
    zeros would do so, too, but the norm after it divides by the root mean square: the gradient of a zero output is multiplied by
    1 / sqrt(eps), and after the first step the output has its full size.
    """
    if name.endswith((".out1.weight", ".out2.weight")):
        return torch.full(tuple(shape), -1.0)
    assert model.deltanet.horizon is not None
    return initial(name, torch.Size(shape), 0, model.init_std, model.deltanet.horizon)


def _block(model: Model, ours: str, theirs: str) -> Iterator[MappedTensor]:
    a, width, hidden = model.attention, model.width, model.mlp.hidden
    inner, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
    for name, published in NORMS.items():
        yield norm_with_one(f"{theirs}.{published}.weight", f"{ours}.{name}.weight", width)
    for name, shape in {"q": (inner, width), "k": (kv, width), "v": (kv, width), "o": (width, inner)}.items():
        yield same(f"{theirs}.self_attn.{name}_proj.weight", f"{ours}.mixer.{name}.weight", shape)
    for name, shape in {"gate": (hidden, width), "up": (hidden, width), "down": (width, hidden)}.items():
        yield same(f"{theirs}.mlp.{name}_proj.weight", f"{ours}.mlp.{name}.weight", shape)


def _extended(name: str, ours: str, shape: tuple[int, int], rows: int, row: int) -> MappedTensor:
    """A matrix of which we have `rows` rows: its own, and copies of one of them."""
    own = shape[0]
    return MappedTensor(
        name, shape, (ours,), lambda parts: parts[0][:own],
        lambda tensor: [torch.cat([tensor, tensor[row].expand(rows - own, -1)])],
    )  # fmt: skip


def _checked_layers(layers: str | None, depth: int, source: str) -> str:
    """The pattern, given or by default. Raises UserError unless it has an A for every block of theirs."""
    if layers is None:
        return default_layers(depth)
    try:
        pattern = expand(layers)
    except ValueError as error:
        raise UserError(f"--layers {layers}: {error}") from None
    if "L" in pattern:
        raise UserError(f"--layers {layers}: Ouro has no local attention (L); give its blocks an A, and new ones a G")
    if (blocks := pattern.count("A")) != depth:
        raise UserError(
            f"--layers {layers} has {blocks} blocks of attention (A), and {source} has {depth}; give every block of the model an A and "
            f"every new one a G, as in {default_layers(depth)}"
        )
    return layers


def _differences(config: Mapping[str, Any]) -> Iterator[str]:
    """What of their configuration our blocks do not have."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    wanted = {
        "hidden_act": (config.get("hidden_act", "silu"), "silu"),
        "attention_bias": (config.get("attention_bias", False), False),
        "use_sliding_window": (config.get("use_sliding_window", False), False),
        "rope_type": (rope.get("rope_type", rope.get("type", "default")), "default"),
        "early_exit_threshold": (float(config.get("early_exit_threshold", 1.0)), 1.0),
    }
    for name, (value, ours) in wanted.items():
        if value != ours:
            yield f"{name} is {value!r}, and sleeptrain has {ours!r} only"
    if odd := sorted(set(config.get("layer_types") or ()) - {"full_attention"}):
        yield f"layer_types: sleeptrain reads full_attention only, not {odd[0]!r}"


def _theta(config: Mapping[str, Any]) -> float:
    rope: Mapping[str, Any] = config if "rope_theta" in config else config.get("rope_parameters") or config
    return float(rope["rope_theta"])
