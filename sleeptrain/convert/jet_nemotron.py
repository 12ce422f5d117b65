"""Jet-Nemotron (`jet_nemotron`, arXiv 2508.15884): its config.json, its tensors, and what the licence of its weights demands."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sleeptrain.convert.folder_reading import FolderReading, described, no_grafted_blocks
from sleeptrain.convert.hf_config import naming, read_sleep, without_problems
from sleeptrain.convert.qwen3_5 import MappedTensor, norm_with_one, same
from sleeptrain.errors import UserError
from sleeptrain.model.config import AttentionConfig, DeltaNetConfig, MlpConfig, Model

LETTERS = {"jet": "G", "attn": "A", "swa": "L"}
"""Letters of our pattern by their layer types."""
IMPLEMENTATION = {"mode", "dconv_implementation"}
"""Keys of their blocks that choose between kernels."""
NOTICES = {
    "NOTICE-NON-COMMERCIAL": """\
The weights of this model began as those of Jet-Nemotron, which NVIDIA publishes under a licence of its own. It allows
non-commercial use only, which is research and evaluation. Works derived from the weights, such as models trained from
them, have the same limit, and a copy of the licence must go with them. The licence on the page of the published model is
what counts.
"""
}
"""The file that says so in a run folder, and goes with everything that is made from the run."""


def read_folder(folder: Path, config: dict[str, Any], layers: str | None) -> FolderReading:
    """What a folder with this config.json says. Raises UserError for what sleeptrain cannot express, and where `layers` is given."""
    source = str(folder / "config.json")
    no_grafted_blocks(layers, source)
    model = read_model(config, source)
    run = described(folder, model, read_sleep(None, len(model.pattern), source))
    return FolderReading(*run, mapped_tensors(model), {}, notices=NOTICES)


def read_model(config: Mapping[str, Any], source: str) -> Model:
    """The section `model:` of a config.json. Raises UserError, with `source`, for what sleeptrain cannot express."""
    with naming(source):
        types = list(config["layer_types"])
        if found := [*_differences(config, types), *_block_differences(config, types)]:
            raise UserError([f"{source}: {difference}" for difference in found])
        width, heads = config["hidden_size"], config["num_attention_heads"]
        swa = config["efficient_attention_config"]["swa"] if "swa" in types else {}
        model = Model(
            width=width,
            layers="".join(LETTERS[name] for name in types),
            attention=AttentionConfig(
                heads, config["num_key_value_heads"], config.get("head_dim") or width // heads, rotary=1.0,
                theta=float(config["rope_theta"]), gate=False, local=swa.get("window_size"), bias=True, qk_norm=False,
            ),
            deltanet=_deltanet_config(config["efficient_attention_config"]["jet"]) if "jet" in types else DeltaNetConfig(),
            mlp=MlpConfig(config["intermediate_size"]), vocab=config["vocab_size"],
            tie=config.get("tie_word_embeddings", False), eps=config.get("rms_norm_eps", 1e-6),
            init_std=config.get("initializer_range", 0.02),
        )  # fmt: skip
        return without_problems(model, source)


def _deltanet_config(jet: Mapping[str, Any]) -> DeltaNetConfig:
    """The section of their Jet blocks. Their numbers may be texts, as in `norm_eps: "1e-5"`."""
    heads, d_k, d_v = int(jet["num_heads"]), int(jet["head_dim"]), _value_dim(jet)
    return DeltaNetConfig(
        heads, heads, d_k, int(jet.get("conv_size", 4)), generator=heads * d_v // int(jet["dconv_generator_reduction"]),
        value_dim=d_v, eps=float(jet.get("norm_eps", 1e-5)),
    )  # fmt: skip


def _value_dim(jet: Mapping[str, Any]) -> int:
    """Size of a head's values. `expand_v` is a rounded decimal, such as 2.6666666667 for 8/3."""
    return round(int(jet["head_dim"]) * float(jet["expand_v"]))


def _differences(config: Mapping[str, Any], types: list[str]) -> Iterator[str]:
    """What of their configuration our blocks do not have."""
    if unknown := sorted(set(map(str, types)) - set(LETTERS)):
        yield f"layer_types: sleeptrain has no layer {unknown[0]!r}"
    if len(types) != config["num_hidden_layers"]:
        yield f"layer_types lists {len(types)} layers, and num_hidden_layers is {config['num_hidden_layers']}"
    wanted = {"hidden_act": "silu", "rope_scaling": None, "use_mrope": False}
    for name, ours in wanted.items():
        if (value := config.get(name, ours)) != ours:
            yield f"{name} is {value!r}, and sleeptrain has {ours!r} only"


def _block_differences(config: Mapping[str, Any], types: list[str]) -> Iterator[str]:
    """What of the sections of their Jet and sliding-window blocks ours do not have."""
    section = "efficient_attention_config"
    known = {
        "jet": {"num_heads", "head_dim", "expand_v", "conv_size", "norm_eps", "dconv_generator_reduction"} | IMPLEMENTATION,
        "swa": {"window_size"},
    }  # fmt: skip
    for kind in sorted(set(types) & known.keys()):
        given = config[section][kind]
        if unknown := sorted(set(given) - known[kind]):
            yield f"{section}.{kind}.{unknown[0]} is an option that sleeptrain has not"
        elif kind == "jet":
            exact = int(given["head_dim"]) * float(given["expand_v"])
            if not math.isclose(exact, _value_dim(given), rel_tol=1e-5):
                yield f"{section}.jet.expand_v is {given['expand_v']}, which gives heads no whole number of values"


def mapped_tensors(model: Model) -> list[MappedTensor]:
    """All tensors of a model in the order of its layers. Every parameter is in exactly one of them."""
    assert model.vocab is not None
    mapped = [same("model.embed_tokens.weight", "embed.weight", (model.vocab, model.width))]
    for layer, letter in enumerate(model.pattern):
        ours, theirs = f"layers.{layer}", f"model.layers.{layer}"
        mapped.append(norm_with_one(f"{theirs}.input_layernorm.weight", f"{ours}.norm1.weight", model.width))
        mapped += (_jet if letter == "G" else _attention)(model, f"{ours}.mixer", f"{theirs}.self_attn")
        mapped.append(norm_with_one(f"{theirs}.post_attention_layernorm.weight", f"{ours}.norm2.weight", model.width))
        hidden, width = model.mlp.hidden, model.width
        for name, shape in (("gate", (hidden, width)), ("up", (hidden, width)), ("down", (width, hidden))):
            mapped.append(same(f"{theirs}.mlp.{name}_proj.weight", f"{ours}.mlp.{name}.weight", shape))
    mapped.append(norm_with_one("model.norm.weight", "norm.weight", model.width))
    if not model.tie:
        mapped.append(same("lm_head.weight", "head.weight", (model.vocab, model.width)))
    return mapped


def _attention(model: Model, ours: str, theirs: str) -> Iterator[MappedTensor]:
    a, width = model.attention, model.width
    inner, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
    for name, rows in (("q", inner), ("k", kv), ("v", kv)):
        yield same(f"{theirs}.{name}_proj.weight", f"{ours}.{name}.weight", (rows, width))
        yield same(f"{theirs}.{name}_proj.bias", f"{ours}.{name}.bias", (rows,))
    yield same(f"{theirs}.o_proj.weight", f"{ours}.o.weight", (width, inner))


def _jet(model: Model, ours: str, theirs: str) -> Iterator[MappedTensor]:
    g, width, generator = model.deltanet, model.width, f"{theirs}.dynamic_conv1d.kernel_generator"
    keys, values, hidden = g.key_heads * g.head_dim, g.value_heads * g.d_v, g.generator
    assert hidden is not None
    rows = {"q": keys, "k": keys, "v": values, "b": g.value_heads, "a": g.value_heads, "g": values}
    for name, count in rows.items():
        yield same(f"{theirs}.{name}_proj.weight", f"{ours}.{'z' if name == 'g' else name}.weight", (count, width))
    yield same(f"{theirs}.o_proj.weight", f"{ours}.o.weight", (width, values))
    yield same(f"{theirs}.A_log", f"{ours}.A_log", (g.value_heads,))
    yield same(f"{theirs}.dt_bias", f"{ours}.dt_bias", (g.value_heads,))
    yield same(f"{theirs}.o_norm.weight", f"{ours}.norm", (g.d_v,))
    yield same(f"{generator}.w1.weight", f"{ours}.generator_in.weight", (hidden, width))
    yield same(f"{generator}.w2.weight", f"{ours}.generator_out.weight", (values * g.conv, hidden))
    yield MappedTensor(
        f"{generator}.w2.bias", (values * g.conv,), (f"{ours}.conv_v",),
        lambda parts: parts[0].flatten(), lambda bias: [bias.view(values, g.conv)],
    )  # fmt: skip
