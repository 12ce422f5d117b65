"""Imports of Jet-Nemotron: a small random checkpoint in the published layout against its formulas, written token by token."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from sleeptrain.convert.export import export_hf
from sleeptrain.convert.export_gguf import export_gguf
from sleeptrain.convert.import_hf import Imported, import_hf
from sleeptrain.convert.jet_nemotron import read_model
from sleeptrain.convert.licences import licence_files
from sleeptrain.convert.model_card import ModelCard
from sleeptrain.errors import UserError
from sleeptrain.inference.session import SleepSession
from sleeptrain.model.language import LanguageModel
from sleeptrain.program import Evict, Loop, Sleep
from sleeptrain.recipe import load_recipe
from sleeptrain.recipe.load_trained import Trained, open_run_files, open_trained
from tests.convert.runs import train_tokenizer
from tests.convert.spoil import check_refused, rewrite, to_pickle, truncate

JET = {
    "conv_size": 4, "dconv_generator_reduction": 8, "dconv_implementation": "triton", "expand_v": 2.6666666667, "head_dim": 6, "mode": "chunk",
    "norm_eps": "1e-5", "num_heads": 2,
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "architectures": ["JetNemotronForCausalLM"], "model_type": "jet_nemotron", "attention_dropout": 0.0,
    "auto_map": {"AutoModelForCausalLM": "modeling_jet_nemotron.JetNemotronForCausalLM"},
    "efficient_attention_config": {"jet": JET, "swa": {"window_size": 5}}, "hidden_act": "silu", "hidden_size": 24,
    "initializer_range": 0.02, "intermediate_size": 40, "layer_types": ["jet", "attn", "swa", "jet"], "num_attention_heads": 4,
    "num_hidden_layers": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 1e4,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_mrope": False, "vocab_size": 288,
}  # fmt: skip
"""A small model with the fields of the published files."""
D_K, D_V, HEADS, HEAD_DIM = 6, 16, 2, 6
KEYS, VALUES = HEADS * D_K, HEADS * D_V


def published_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published layout."""
    width, hidden = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], width),
        "model.norm.weight": (width,),
    }
    for i, kind in enumerate(config["layer_types"]):
        at = f"model.layers.{i}"
        mlp = {"gate_proj": (hidden, width), "up_proj": (hidden, width), "down_proj": (width, hidden)}
        shapes |= {f"{at}.mlp.{name}.weight": shape for name, shape in mlp.items()}
        shapes |= {f"{at}.{name}.weight": (width,) for name in ("input_layernorm", "post_attention_layernorm")}
        if kind == "jet":
            own = {
                f"{name}_proj.weight": (rows, width)
                for name, rows in zip("qkvbag", (KEYS, KEYS, VALUES, HEADS, HEADS, VALUES), strict=True)
            }
            own |= {"o_proj.weight": (width, VALUES), "A_log": (HEADS,), "dt_bias": (HEADS,), "o_norm.weight": (D_V,)}
            generator = {
                "w1.weight": (VALUES // 8, width),
                "w2.weight": (VALUES * 4, VALUES // 8),
                "w2.bias": (VALUES * 4,),
            }
            own |= {f"dynamic_conv1d.kernel_generator.{name}": shape for name, shape in generator.items()}
        else:
            own = {
                f"{name}_proj.{part}": (rows, width)[: 2 if part == "weight" else 1]
                for name, rows in (("q", 24), ("k", 12), ("v", 12))
                for part in ("weight", "bias")
            }
            own["o_proj.weight"] = (width, 24)
        shapes |= {f"{at}.self_attn.{name}": shape for name, shape in own.items()}
    return shapes  # fmt: skip


def random_checkpoint() -> dict[str, Tensor]:
    """Random tensors of these shapes: norms around 1, decays that forget within the text."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, shape in published_shapes(CONFIG).items():
        noise = torch.randn(shape, generator=generator)
        norm = "norm.weight" in name or "layernorm" in name
        found[name] = 1 + 0.2 * noise if norm else noise * (0.5 if len(shape) == 1 else shape[-1] ** -0.5)
    return found


WEIGHTS = random_checkpoint()


def norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def jet_block(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    """One text [time, width] through a Jet mixer, token by token."""
    generator = {name: w[f"dynamic_conv1d.kernel_generator.{name}"] for name in ("w1.weight", "w2.weight", "w2.bias")}
    state, values, outputs = x.new_zeros(HEADS, D_K, D_V), x @ w["v_proj.weight"].T, []
    for t, token in enumerate(x):
        q, k = (F.silu(w[f"{name}_proj.weight"] @ token).view(HEADS, D_K) for name in "qk")
        q, k = (y / (y.square().sum(-1, keepdim=True) + 1e-6).sqrt() for y in (q, k))
        taps = (generator["w2.weight"] @ F.silu(generator["w1.weight"] @ token) + generator["w2.bias"]).view(VALUES, 4)
        convolved = sum((taps[:, 3 - back] * values[t - back] for back in range(min(4, t + 1))), x.new_zeros(VALUES))
        v = F.silu(convolved).view(HEADS, D_V)
        beta = torch.sigmoid(w["b_proj.weight"] @ token)
        decay = torch.exp(-w["A_log"].exp() * F.softplus(w["a_proj.weight"] @ token + w["dt_bias"]))
        gate = F.silu(w["g_proj.weight"] @ token).view(HEADS, D_V)
        heads = []
        for h in range(HEADS):
            s = state[h] * decay[h]
            state = torch.cat([state[:h], (s + torch.outer(k[h], beta[h] * (v[h] - k[h] @ s)))[None], state[h + 1 :]])
            heads.append(norm(q[h] @ state[h] / math.sqrt(D_K), w["o_norm.weight"], 1e-5) * gate[h])
        outputs.append(w["o_proj.weight"] @ torch.cat(heads))
    return torch.stack(outputs)


def attention(x: Tensor, w: dict[str, Tensor], window: int | None) -> Tensor:
    """One text [time, width] through attention with biases, query by query over the newest `window` keys."""

    def rotated(y: Tensor, position: int) -> Tensor:
        angle = position * 1e4 ** (-torch.arange(0, HEAD_DIM, 2, dtype=y.dtype) / HEAD_DIM)
        left, right = y[..., : HEAD_DIM // 2], y[..., HEAD_DIM // 2 :]
        return torch.cat([left * angle.cos() - right * angle.sin(), right * angle.cos() + left * angle.sin()], -1)

    q, k, v = ((x @ w[f"{name}_proj.weight"].T + w[f"{name}_proj.bias"]).view(len(x), -1, HEAD_DIM) for name in "qkv")
    outputs = []
    for t in range(len(x)):
        seen = range(max(0, t - (window or t + 1) + 1), t + 1)
        heads = []
        for h in range(4):
            keys = torch.stack([rotated(k[i, h // 2], i) for i in seen])
            scores = torch.softmax(keys @ rotated(q[t, h], t) / math.sqrt(HEAD_DIM), 0)
            heads.append(scores @ torch.stack([v[i, h // 2] for i in seen]))
        outputs.append(w["o_proj.weight"] @ torch.cat(heads))
    return torch.stack(outputs)


def plain_logits(tokens: Tensor, weights: dict[str, Tensor], kinds: list[str] = CONFIG["layer_types"]) -> Tensor:
    """Logits [time, vocab] of one text [time] by the formulas of the published model."""
    h = weights["model.embed_tokens.weight"][tokens]
    for i, kind in enumerate(kinds):
        at = f"model.layers.{i}."
        w = {name.removeprefix(at): tensor for name, tensor in weights.items() if name.startswith(at)}
        mixer = {name.removeprefix("self_attn."): tensor for name, tensor in w.items()}
        x = norm(h, w["input_layernorm.weight"])
        h = h + (jet_block(x, mixer) if kind == "jet" else attention(x, mixer, 5 if kind == "swa" else None))
        x = norm(h, w["post_attention_layernorm.weight"])
        gated = F.silu(x @ w["mlp.gate_proj.weight"].T) * (x @ w["mlp.up_proj.weight"].T)
        h = h + gated @ w["mlp.down_proj.weight"].T
    return norm(h, weights["model.norm.weight"]) @ weights["model.embed_tokens.weight"].T


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in the published layout."""
    (made := tmp_path / "theirs").mkdir()
    train_tokenizer(made / "tokenizer.json")
    (made / "config.json").write_text(json.dumps(CONFIG))
    (made / "LICENSE").write_text("their terms")
    save_file(WEIGHTS, made / "model.safetensors")
    return made


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Imported, Path, Trained]:
    """An import, its run folder, and the model that is opened from there."""
    base = tmp_path_factory.mktemp("jet")
    found = import_hf(folder.__wrapped__(base), out := base / "ours")
    return found, out, open_trained(out)


TOKENS = torch.randint(0, 280, (2, 17), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def wanted() -> Tensor:
    """The logits of the formulas."""
    return torch.stack([plain_logits(row, WEIGHTS) for row in TOKENS])


def test_every_tensor_is_used_once_and_the_model_is_the_published_one(
    imported: tuple[Imported, Path, Trained], wanted: Tensor
) -> None:
    found, _, trained = imported
    assert found.tensors == len(WEIGHTS) and not found.dropped
    assert trained.recipe.model.layers == "GALG" and trained.recipe.model.deltanet.eps == 1e-5
    logits = trained.model(TOKENS, sleep=Sleep(window=64))
    assert wanted.std() > 0.1
    torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=0)


def test_a_session_of_one_pass_equals_it_token_by_token(
    imported: tuple[Imported, Path, Trained], wanted: Tensor
) -> None:
    session = SleepSession(imported[2].model, Sleep(window=64), batch=2)
    pieces = [session.feed(TOKENS[:, t : t + 1]) for t in range(TOKENS.shape[1])]
    torch.testing.assert_close(torch.cat(pieces, 1), wanted, atol=1e-5, rtol=0)


def test_a_session_that_sleeps_computes_the_logits_of_training(imported: tuple[Imported, Path, Trained]) -> None:
    """With a looped range in the middle and two passes, over three windows."""
    sleep = Sleep(window=8, passes=2, loop=Loop(layers=(1, 3), feedback="embeddings", trigger="every"))
    session = SleepSession(imported[2].model, sleep, batch=2)
    pieces = [session.feed(TOKENS[:, a:b]) for a, b in ((0, 3), (3, 4), (4, 13), (13, 17))]
    torch.testing.assert_close(torch.cat(pieces, 1), imported[2].model(TOKENS, sleep=sleep), atol=1e-5, rtol=1e-5)


def test_local_attention_alone_sees_the_same_keys_over_the_borders_of_windows(
    imported: tuple[Imported, Path, Trained],
) -> None:
    """Under sliding eviction, where windows are longer than its reach."""
    model = LanguageModel(replace(imported[2].recipe.model, layers="GLLG"), seed=None)
    model.load_state_dict(imported[2].model.state_dict())
    found = model(TOKENS[:1], sleep=Sleep(window=6, loop=Loop(trigger="every"), evict=Evict("sliding")))
    wanted = plain_logits(TOKENS[0], WEIGHTS, ["jet", "swa", "swa", "jet"])
    torch.testing.assert_close(found[0], wanted, atol=1e-5, rtol=0)


def test_gradients_are_those_of_the_formulas_in_float64(imported: tuple[Imported, Path, Trained]) -> None:
    model = LanguageModel(imported[2].recipe.model, seed=None).double()
    model.load_state_dict({name: p.double() for name, p in imported[2].model.named_parameters()})
    leaves = {name: tensor.double().requires_grad_() for name, tensor in WEIGHTS.items()}
    tokens = TOKENS[:1, :9]
    model(tokens, sleep=Sleep(window=64)).square().sum().backward()
    plain_logits(tokens[0], leaves).square().sum().backward()
    at = "model.layers.0.self_attn."
    pairs = {
        "mixer.generator_in.weight": "dynamic_conv1d.kernel_generator.w1.weight",
        "mixer.generator_out.weight": "dynamic_conv1d.kernel_generator.w2.weight",
        "mixer.conv_v": "dynamic_conv1d.kernel_generator.w2.bias",
        "mixer.v.weight": "v_proj.weight", "mixer.q.weight": "q_proj.weight", "mixer.A_log": "A_log", "mixer.norm": "o_norm.weight",
    }  # fmt: skip
    ours = dict(model.layers[0].named_parameters())
    for name, theirs in pairs.items():
        wanted = leaves[at + theirs].grad
        assert wanted is not None and wanted.norm() > 0
        # The norms of both differ by the rounding of w - 1 in float32.
        torch.testing.assert_close(
            ours[name].grad.flatten(), wanted.flatten(), rtol=1e-4, atol=1e-5 * float(wanted.abs().max())
        )


@pytest.mark.slow
def test_fine_tuning_lowers_the_loss_on_a_text(imported: tuple[Imported, Path, Trained]) -> None:
    model = LanguageModel(imported[2].recipe.model, seed=None)
    model.load_state_dict(imported[2].model.state_dict())
    sleep = Sleep(window=8, passes=2, loop=Loop(feedback="embeddings", trigger="every"))
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for _ in range(20):
        loss = model(TOKENS[:, :-1], TOKENS[:, 1:], sleep=sleep)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


PUBLISHED = {
    "2B": (1_964_806_208, {
        "hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12, "num_hidden_layers": 28, "vocab_size": 151936,
        "layer_types": ["jet"] * 14 + ["attn"] + ["jet"] * 4 + ["attn", "swa", "swa"] + ["jet"] * 6,
        "efficient_attention_config": {"jet": JET | {"head_dim": 96, "num_heads": 12}, "swa": {"window_size": 1152}},
    }),
    "4B": (3_960_424_768, {
        "hidden_size": 2048, "intermediate_size": 11008, "num_attention_heads": 16, "num_hidden_layers": 36, "vocab_size": 151936,
        "layer_types": [
            "attn" if i in (17, 20, 32) else "swa" if i in (5, 16, 19, 21, 22, 25, 27) else "jet" for i in range(36)
        ],
        "efficient_attention_config": {"jet": JET | {"head_dim": 128, "num_heads": 16, "expand_v": 2}, "swa": {"window_size": 2048}},
    }),
}  # fmt: skip
"""Numbers of parameters and configurations of the published models."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_models_have_their_number_of_parameters(name: str) -> None:
    count, changes = PUBLISHED[name]
    config = read_model(CONFIG | changes | {"rope_theta": 1e6}, "config.json")
    with torch.device("meta"):
        assert sum(p.numel() for p in LanguageModel(config).parameters()) == count
    if name == "2B":
        shipped = load_recipe("jet-nemotron-2b").value.model
        assert config == replace(shipped, layers=shipped.pattern)


def test_the_licence_goes_with_the_run_and_with_what_is_trained_from_it(folder: Path, tmp_path: Path) -> None:
    found = import_hf(folder, out := tmp_path / "ours")
    assert found.licences == ("LICENSE",) and list(found.notices) == ["NOTICE-NON-COMMERCIAL"]
    carried = licence_files(out)
    assert carried["LICENSE"] == "their terms" and "non-commercial use only" in carried["NOTICE-NON-COMMERCIAL"]
    card = ModelCard(open_run_files(out), 1, "float32", True, tuple(carried)).text()
    assert "whose licence applies: LICENSE, NOTICE-NON-COMMERCIAL" in card
    (tuned := tmp_path / "tuned").mkdir()
    for base in (out, out / "checkpoints/step-00000000", out / "checkpoints/best"):
        text = (out / "config.yaml").read_text().replace("init_from: null", f"init_from: {base}")
        (tuned / "config.yaml").write_text(text)
        assert licence_files(tuned) == carried, base


def test_what_other_formats_cannot_express_is_refused_by_name(
    imported: tuple[Imported, Path, Trained], tmp_path: Path
) -> None:
    for export in (
        lambda: export_hf(imported[1], tmp_path / "hf", torch.float32, 1 << 30),
        lambda: export_gguf(imported[1], tmp_path / "out.gguf", "f16"),
    ):
        with pytest.raises(UserError) as error:
            export()
        fields = ("model.layers", "model.attention.bias", "model.attention.qk_norm", "model.deltanet.generator", "model.deltanet.value_dim", "model.deltanet.eps")  # fmt: skip
        assert all(any(line.startswith(f"{field} = ") for line in error.value.errors) for field in fields)
    assert not list(tmp_path.iterdir())


def _config(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))


def _jet(folder: Path, **changes: Any) -> None:
    _config(folder, efficient_attention_config={"jet": JET | changes, "swa": {"window_size": 5}})


TAPS = "model.layers.0.self_attn.dynamic_conv1d.kernel_generator.w2.bias"
REFUSALS = {
    "missing tensor": (lambda f: rewrite(f, **{TAPS: None}), r"tensor .*kernel_generator.w2.bias is missing"),
    "other tensor": (lambda f: rewrite(f, extra=torch.zeros(1)), r"model.safetensors: extra is a tensor that the model"),
    "wrong shape": (lambda f: rewrite(f, **{TAPS: torch.zeros(3)}), r"w2.bias has the shape \[3\], and config.json gives it \[128\]"),
    "truncated": (truncate, r"model.safetensors cannot be read as safetensors"),
    "pickle": (to_pickle, r"pytorch_model.bin may be a pickle, which can run code and is not opened"),
    "unknown layer": (lambda f: _config(f, layer_types=["mamba2"] * 4), r"layer_types: sleeptrain has no layer 'mamba2'"),
    "number of layers": (lambda f: _config(f, num_hidden_layers=5), r"layer_types lists 4 layers, and num_hidden_layers is 5"),
    "rope": (lambda f: _config(f, rope_scaling={"type": "yarn"}), r"rope_scaling is .*, and sleeptrain has None only"),
    "activation": (lambda f: _config(f, hidden_act="gelu"), r"hidden_act is 'gelu'"),
    "no window": (lambda f: _config(f, efficient_attention_config={"jet": JET}), r"config.json has no 'swa'"),
    "an option of theirs": (lambda f: _jet(f, use_gate=False), r"efficient_attention_config.jet.use_gate is an option that sleeptrain has not"),
    "odd values": (lambda f: _jet(f, expand_v=2.6), r"expand_v is 2.6, which gives heads no whole number of values"),
    "no size": (lambda f: _config(f, efficient_attention_config={"jet": {}, "swa": {"window_size": 5}}), r"config.json has no 'head_dim'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_a_bad_folder_is_refused_with_its_fault_and_nothing_is_written(case: str, folder: Path) -> None:
    check_refused(folder, *REFUSALS[case])
