"""Tiny models and batches for the tests of this folder."""

import torch

from sleeptrain.model.config import AttentionConfig, DeltaNetConfig, MlpConfig, Model
from sleeptrain.model.init import initialise
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.sleep import run
from sleeptrain.program import Window, compile

VOCAB = 11


def config(layers="AGAG", **changes):
    sizes = {
        "width": 12, "tie": False, "vocab": VOCAB, "mlp": MlpConfig(hidden=16), "init_std": 0.15,
        "attention": AttentionConfig(heads=4, kv_heads=2, head_dim=4, rotary=0.5),
        "deltanet": DeltaNetConfig(key_heads=2, value_heads=4, head_dim=4),
    }  # fmt: skip
    return Model(layers=layers, **(sizes | changes))


def model(layers="AGAG", seed=0, dtype=torch.float64, **changes):
    made = LanguageModel(config(layers, **changes))
    initialise(made, seed, horizon=64)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # neutral norm weights would hide a forgotten one
        for name, p in made.named_parameters():
            if "norm" in name or "out" in name:
                p += 0.3 * torch.randn(p.shape, generator=generator)
    return made.to(dtype)


def windows(length, count, targets=lambda i: True, tail=None):
    found = [Window(i * length, (i + 1) * length, targets(i)) for i in range(count)]
    if tail:
        found[-1] = Window(found[-1].start, found[-1].start + tail, found[-1].targets)
    return found


def batch(layout, rows=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCAB, (rows, layout[-1].stop), generator=generator)
    targets = torch.randint(0, VOCAB, tokens.shape, generator=generator)
    targets[torch.rand(tokens.shape, generator=generator) < 0.3] = -100
    for w in layout:
        if not w.targets:
            targets[:, w.start : w.stop] = -100
    return tokens, targets


def forward(m, sleep, layout, tokens, targets, passes=None, state=None, **options):
    program = compile(sleep, layout, len(m.layers), passes)
    state = state if state is not None else m.zero_state(sleep, tokens.shape[0])
    return run(m, tokens, targets, state, program, sleep, **options)
