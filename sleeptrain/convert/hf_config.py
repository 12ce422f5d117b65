"""config.json of a model in the layout of `qwen3_5_text`: written from our sections, and read into them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from sleeptrain.errors import UserError
from sleeptrain.model.config import AttentionConfig, DeltaNetConfig, MlpConfig, Model, rotary_dims
from sleeptrain.program import Evict, Loop, Sleep, loop_range

LAYER_TYPES = {"A": "full_attention", "G": "linear_attention"}
LETTERS = {name: letter for letter, name in LAYER_TYPES.items()}
POSITIONS = 32768
"""`max_position_embeddings`, at least. It bounds the context of programs that ask for it; rotary positions have no bound."""


def config_json(
    model: Model, sleep: Sleep, *, dtype: str, length: int, tokens: Mapping[str, int | None], feedback: Sequence[float] = ()
) -> dict[str, Any]:  # fmt: skip
    """The content of config.json.

    dtype      of the weights, "float32" or "bfloat16"
    length     tokens of the longest context in training
    tokens     the ids `bos_token_id`, `eos_token_id` and `pad_token_id`
    feedback   the weight of gated feedback, which no other engine has a place for; it is only read in sleep
    """
    a, g, pattern = model.attention, model.deltanet, model.pattern
    rope = {"rope_type": "default", "rope_theta": a.theta, "partial_rotary_factor": a.rotary}
    interval = full_attention_interval(pattern)
    return {
        "architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text",
        "auto_map": {"AutoModelForCausalLM": "modeling_sleep.SleepForCausalLM"},
        "dtype": dtype, "mamba_ssm_dtype": "float32", **tokens,
        "vocab_size": model.vocab, "hidden_size": model.width, "intermediate_size": model.mlp.hidden,
        "num_hidden_layers": len(pattern), "layer_types": [LAYER_TYPES[letter] for letter in pattern],
        **({"full_attention_interval": interval} if interval else {}),
        "num_attention_heads": a.heads, "num_key_value_heads": a.kv_heads, "head_dim": a.head_dim,
        "rope_parameters": rope, "max_position_embeddings": max(POSITIONS, length),
        "linear_num_key_heads": g.key_heads, "linear_num_value_heads": g.value_heads,
        "linear_key_head_dim": g.head_dim, "linear_value_head_dim": g.head_dim, "linear_conv_kernel_dim": g.conv,
        "hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0, "rms_norm_eps": model.eps,
        "tie_word_embeddings": model.tie, "initializer_range": model.init_std, "use_cache": True,
        "sleep": sleep_json(sleep, len(pattern), feedback),
    }  # fmt: skip


def sleep_json(sleep: Sleep, depth: int, feedback: Sequence[float]) -> dict[str, Any]:
    """The section `sleep` of config.json, which modeling_sleep.py reads."""
    section = {
        "window": sleep.window, "passes": sleep.max_passes, "layers": list(loop_range(sleep, depth)),
        "feedback": sleep.loop.feedback, "trigger": sleep.loop.trigger,
        "eviction": sleep.evict.mode, "conv_carry": sleep.evict.conv_carry,
    }  # fmt: skip
    return section | ({"feedback_weight": list(feedback)} if feedback else {})


def full_attention_interval(pattern: str) -> int | None:
    """k where exactly every k-th block is attention, as engines expect that read no `layer_types`; None for other patterns."""
    interval = pattern.find("A") + 1
    regular = (
        all((letter == "A") == ((i + 1) % interval == 0) for i, letter in enumerate(pattern)) if interval else False
    )
    return interval if regular else None


def read_model(config: Mapping[str, Any], source: str) -> Model:
    """The section `model:` of a config.json. Raises UserError, with `source`, for what sleeptrain cannot express."""
    with naming(source):
        if differences := _differences(config):
            raise UserError([f"{source}: {difference}" for difference in differences])
        rope = _rope(config)
        model = Model(
            width=config["hidden_size"],
            layers="".join(LETTERS[name] for name in layer_types(config)),
            attention=AttentionConfig(
                config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"],
                float(rope.get("partial_rotary_factor", 0.25)), float(rope["rope_theta"]),
            ),
            deltanet=DeltaNetConfig(
                config["linear_num_key_heads"], config["linear_num_value_heads"], config["linear_key_head_dim"],
                config.get("linear_conv_kernel_dim", 4),
            ),
            mlp=MlpConfig(config["intermediate_size"]), vocab=config["vocab_size"],
            tie=config.get("tie_word_embeddings", False), eps=config.get("rms_norm_eps", 1e-6),
            init_std=config.get("initializer_range", 0.02),
        )  # fmt: skip
        return without_problems(model, source)


def without_problems(model: Model, source: str) -> Model:
    """The model. Raises UserError, with `source`, that lists its invalid values."""
    if problems := model.problems():
        raise UserError([f"{source}: model.{problem.field} {problem.message}" for problem in problems])
    return model


def read_sleep(section: Mapping[str, Any] | None, depth: int, source: str) -> Sleep:
    """The section `sleep:` of a recipe; without one, one pass over windows of 2,048 tokens. Raises UserError with `source`."""
    if section is None:
        return Sleep(window=2048, loop=Loop(trigger="every"))
    with naming(source):
        layers = tuple(section["layers"])
        return Sleep(
            section["window"], section["passes"],
            Loop("all" if layers == (0, depth) else layers, section["feedback"], section["trigger"]),
            Evict(section["eviction"], section["conv_carry"]),
        )  # fmt: skip


@contextmanager
def naming(source: str) -> Iterator[None]:
    """Raises UserError with `source` where its values are missing or of another type."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"{source} has no {error.args[0]!r}; it is no complete config.json") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{source} has a value of a wrong type ({error}); restore the file") from None


def layer_types(config: Mapping[str, Any]) -> list[str]:
    """The types of all layers, which `full_attention_interval` gives where they are not listed."""
    if config.get("layer_types"):
        return list(config["layer_types"])
    interval = config.get("full_attention_interval", 4)
    return [LAYER_TYPES["G" if (i + 1) % interval else "A"] for i in range(config["num_hidden_layers"])]


def _differences(config: Mapping[str, Any]) -> list[str]:
    """What of their configuration our blocks do not have."""
    rope, found = _rope(config), list[str]()
    types = layer_types(config)
    if unknown := sorted(set(types) - set(LETTERS)):
        found.append(f"layer_types: sleeptrain has no layer {unknown[0]!r}")
    if len(types) != config["num_hidden_layers"]:
        found.append(f"layer_types lists {len(types)} layers, and num_hidden_layers is {config['num_hidden_layers']}")
    wanted = {
        "hidden_act": (config.get("hidden_act", "silu"), "silu"),
        "attention_bias": (config.get("attention_bias", False), False),
        "rope_parameters.rope_type": (rope.get("rope_type", rope.get("type", "default")), "default"),
        "linear_value_head_dim": (config["linear_value_head_dim"], config["linear_key_head_dim"]),
    }
    found += [
        f"{name} is {value!r}, and sleeptrain has {ours!r} only"
        for name, (value, ours) in wanted.items()
        if value != ours
    ]
    return found


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of rotary positions. transformers takes those under the older key `rope_scaling`, where it is given, before others."""
    return {**config, **(config.get("rope_scaling") or config.get("rope_parameters") or {})}


def same_shape(model: Model) -> Model:
    """A model section reduced to what decides its tensors and their use in inference, so that two can be compared."""
    deltanet, a = replace(model.deltanet, horizon=None, negative_eigenvalues=False), model.attention
    attention = replace(a, rotary=rotary_dims(a) / a.head_dim, gate=True, window=None)
    return Model(model.width, model.pattern, attention, deltanet, model.mlp, model.vocab, model.tie, eps=model.eps)
