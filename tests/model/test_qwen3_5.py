"""The default block is the dense Qwen3.5 text block: logits and gradients against transformers, with mapped weights."""

import pytest
import torch

from sleeptrain.model.config import AttentionConfig, DeltaNetConfig, MlpConfig, Model
from sleeptrain.model.init import initialise
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.model.sleep import run
from sleeptrain.program import Sleep, Window, compile
from tests.convert.toys import theirs

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
        expected = theirs(model)(tokens, use_cache=False).logits
    torch.testing.assert_close(logits(model, tokens, TIME), expected, rtol=0, atol=1e-5)


def test_large_weights_drift_no_more_than_transformers_does_in_two_chunks():
    model = our_model("GAGA", std=0.1)
    tokens = torch.randint(0, 101, (2, TIME), generator=torch.Generator().manual_seed(2))
    other = theirs(model)
    with torch.no_grad():
        whole = other(tokens, use_cache=False).logits
        first = other(tokens[:, :40], use_cache=True)
        rest = other(tokens[:, 40:], past_key_values=first.past_key_values, use_cache=True).logits
        drift = (torch.cat([first.logits, rest], 1) - whole).abs().max().item()
    assert (logits(model, tokens, TIME) - whole).abs().max().item() <= max(1e-5, 20 * drift)


def test_gradients_equal_transformers():
    model = our_model("GA", std=0.05)
    tokens = torch.randint(0, 101, (2, TIME), generator=torch.Generator().manual_seed(2))
    other = theirs(model)
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
