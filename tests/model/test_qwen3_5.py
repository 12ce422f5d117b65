"""The default block is the dense Qwen3.5 text block: logits and gradients against transformers, with mapped weights."""

import pytest
import torch

from sleeptrain.model.config import AttentionConfig, DeltaNetConfig, MlpConfig, Model
from sleeptrain.model.init import initialise
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.model.sleep import run
from sleeptrain.program import Sleep, Window, compile

pytestmark = pytest.mark.engines
TIME = 70


def our_model(layers, std, **changes):
    sizes = {
        "attention": AttentionConfig(heads=4, kv_heads=2, head_dim=32, rotary=0.25),
        "deltanet": DeltaNetConfig(2, 4, 16),
    } | changes
    config = Model(width=64, layers=layers, mlp=MlpConfig(96), vocab=101, tie=False, init_std=std, **sizes)
    model = LanguageModel(config)
    initialise(model, seed=0, horizon=400)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def their_model(model):
    """transformers' model with the same weights. Both store RMSNorm weights as w - 1 and the gated norm's as w."""
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    c, a, g = model.config, model.config.attention, model.config.deltanet
    config = Qwen3_5TextConfig(
        vocab_size=c.vocab, hidden_size=c.width, intermediate_size=c.mlp.hidden, num_hidden_layers=len(c.layers),
        num_attention_heads=a.heads, num_key_value_heads=a.kv_heads, head_dim=a.head_dim, rms_norm_eps=c.eps,
        rope_parameters={"rope_type": "default", "rope_theta": a.theta, "partial_rotary_factor": a.rotary},
        linear_conv_kernel_dim=g.conv, linear_key_head_dim=g.head_dim, linear_value_head_dim=g.head_dim,
        linear_num_key_heads=g.key_heads, linear_num_value_heads=g.value_heads, tie_word_embeddings=False,
        layer_types=["linear_attention" if x == "G" else "full_attention" for x in c.layers],
    )  # fmt: skip
    other = Qwen3_5ForCausalLM(config).eval()
    missing, unexpected = other.load_state_dict(mapped_weights(model), strict=False)
    assert not unexpected and not [name for name in missing if "inv_freq" not in name]
    return other


def mapped_weights(model):
    p, a = {n: t.detach() for n, t in model.named_parameters()}, model.config.attention
    out = {
        "model.embed_tokens.weight": p["embed.weight"],
        "model.norm.weight": p["norm.weight"],
        "lm_head.weight": p["head.weight"],
    }
    for i, letter in enumerate(model.config.layers):

        def w(name, i=i):
            return p[f"layers.{i}.{name}"]

        base = f"model.layers.{i}."
        out[base + "input_layernorm.weight"], out[base + "post_attention_layernorm.weight"] = (
            w("norm1.weight"),
            w("norm2.weight"),
        )
        for name in ("gate", "up", "down"):
            out[f"{base}mlp.{name}_proj.weight"] = w(f"mlp.{name}.weight")
        if letter == "A":
            heads = [w(f"mixer.{n}.weight").view(a.heads, a.head_dim, -1) for n in ("q", "gate")]
            out[base + "self_attn.q_proj.weight"] = torch.cat(heads, 1).flatten(0, 1)
            for name in ("k", "v", "o"):
                out[f"{base}self_attn.{name}_proj.weight"] = w(f"mixer.{name}.weight")
            for name in ("q_norm", "k_norm"):
                out[f"{base}self_attn.{name}.weight"] = w(f"mixer.{name}.weight")
        else:
            net = base + "linear_attn."
            out[net + "in_proj_qkv.weight"] = torch.cat([w(f"mixer.{n}.weight") for n in "qkv"])
            out[net + "conv1d.weight"] = torch.cat([w(f"mixer.conv_{n}") for n in "qkv"])[:, None]
            for name, to in (("z", "in_proj_z"), ("b", "in_proj_b"), ("a", "in_proj_a"), ("o", "out_proj")):
                out[f"{net}{to}.weight"] = w(f"mixer.{name}.weight")
            out[net + "A_log"], out[net + "dt_bias"], out[net + "norm.weight"] = (
                w("mixer.A_log"),
                w("mixer.dt_bias"),
                w("mixer.norm"),
            )
    return out


@torch.no_grad()
def logits(model, tokens, window):
    """One pass over windows of `window` tokens, as the trainer runs it."""
    sleep = Sleep(window=window)
    layout = [Window(0, tokens.shape[1], True)]
    normed = []
    model.norm.register_forward_hook(lambda _, __, h: normed.append(h))
    batch = MicroBatch(tokens, tokens, model.zero_state(sleep, tokens.shape[0]))
    run(model, batch, compile(sleep, layout, len(model.layers)), sleep)
    return normed[0] @ model.head.weight.T


CASES = {
    "both mixers": {"layers": "GAGA"},
    "attention": {"layers": "AA"},
    "deltanet": {"layers": "GG"},
    "attention first": {"layers": "AGGG"},
    "four value heads a key head": {"layers": "GA", "deltanet": DeltaNetConfig(1, 4, 16)},
    "full rotary": {
        "layers": "AG",
        "attention": AttentionConfig(heads=4, kv_heads=1, head_dim=32, rotary=1.0, theta=1e6),
    },
    "three taps": {"layers": "GA", "deltanet": DeltaNetConfig(2, 2, 16, conv=3)},
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(case):
    model = our_model(std=0.02, **CASES[case])
    tokens = torch.randint(0, 101, (2, TIME), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = their_model(model)(tokens, use_cache=False).logits
    torch.testing.assert_close(logits(model, tokens, TIME), expected, rtol=0, atol=1e-5)


def test_large_weights_drift_no_more_than_transformers_does_in_two_chunks():
    model = our_model("GAGA", std=0.1)
    tokens = torch.randint(0, 101, (2, TIME), generator=torch.Generator().manual_seed(2))
    other = their_model(model)
    with torch.no_grad():
        whole = other(tokens, use_cache=False).logits
        first = other(tokens[:, :40], use_cache=True)
        rest = other(tokens[:, 40:], past_key_values=first.past_key_values, use_cache=True).logits
        drift = (torch.cat([first.logits, rest], 1) - whole).abs().max().item()
    assert (logits(model, tokens, TIME) - whole).abs().max().item() <= max(1e-5, 20 * drift)


def test_gradients_equal_transformers():
    model = our_model("GA", std=0.05)
    tokens = torch.randint(0, 101, (2, TIME), generator=torch.Generator().manual_seed(2))
    other = their_model(model)
    sleep = Sleep(window=TIME)
    targets = tokens.roll(-1, 1)
    program = compile(sleep, [Window(0, TIME, True)], 2)
    run(model, MicroBatch(tokens, targets, model.zero_state(sleep, 2)), program, sleep).nll.sum().backward()
    torch.nn.functional.cross_entropy(other(tokens).logits.flatten(0, 1), targets.flatten(), reduction="sum").backward()
    found = {n: p.grad for n, p in other.named_parameters()}
    pairs = {
        "embed.weight": "model.embed_tokens.weight", "layers.0.mixer.A_log": "model.layers.0.linear_attn.A_log",
        "layers.0.mixer.o.weight": "model.layers.0.linear_attn.out_proj.weight",
        "layers.1.mixer.k.weight": "model.layers.1.self_attn.k_proj.weight",
    }  # fmt: skip
    for name, to in pairs.items():
        ours_, theirs_ = dict(model.named_parameters())[name].grad, found[to]
        assert (ours_ - theirs_).norm() <= 1e-4 * theirs_.norm(), name
