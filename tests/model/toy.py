"""Tiny models, window layouts and batches for tests."""

import torch

from sleeptrain.model.config import AttentionConfig, DeltaNetConfig, MlpConfig, Model
from sleeptrain.model.init import initialise
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.micro_batch import MicroBatch, starts_by_window
from sleeptrain.model.sleep import run
from sleeptrain.program import Window, compile

VOCAB = 11
OURO = {"norm": "sandwich", "attention": AttentionConfig(4, 2, 4, rotary=1.0, gate=False, qk_norm=False)}
"""Changes that give attention blocks the form of those of Ouro."""


def config(layers="AGAG", **changes):
    sizes = {
        "width": 12, "tie": False, "vocab": VOCAB, "mlp": MlpConfig(hidden=16), "init_std": 0.15,
        "attention": AttentionConfig(heads=4, kv_heads=2, head_dim=4, rotary=0.5),
        "deltanet": DeltaNetConfig(key_heads=2, value_heads=4, head_dim=4),
    }  # fmt: skip
    return Model(layers=layers, **(sizes | changes))


def model(layers="AGAG", seed=0, dtype=torch.float64, gated=False, **changes):
    result = LanguageModel(config(layers, **changes), gated=gated)
    initialise(result, seed, horizon=64)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # with neutral norm weights a missing norm would not show
        for name, p in result.named_parameters():
            if "norm" in name or "out" in name or "feedback" in name:
                p += 0.3 * torch.randn(p.shape, generator=generator)
    return result.to(dtype)


def jet(layers="GLGA", **options):
    """A model with the options of Jet-Nemotron: dynamic convolution, local attention, biases, no q/k norm."""
    attention = AttentionConfig(
        heads=4, kv_heads=2, head_dim=4, rotary=1.0, gate=False, local=3, bias=True, qk_norm=False
    )
    deltanet = DeltaNetConfig(key_heads=2, value_heads=4, head_dim=4, generator=5, value_dim=6, eps=1e-5)
    result = model(layers, attention=attention, deltanet=deltanet, **options)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():  # they begin as zeros, and a missing one would not show
        for name, p in result.named_parameters():
            if name.endswith(".bias"):
                p += 0.3 * torch.randn(p.shape, generator=generator)
    return result


def windows(length, count, targets=lambda i: True, tail=None):
    layout = [Window(i * length, (i + 1) * length, targets(i)) for i in range(count)]
    if tail:
        layout[-1] = Window(layout[-1].start, layout[-1].start + tail, layout[-1].targets)
    return layout


def batch(layout, rows=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCAB, (rows, layout[-1].stop), generator=generator)
    targets = torch.randint(0, VOCAB, tokens.shape, generator=generator)
    targets[torch.rand(tokens.shape, generator=generator) < 0.3] = -100
    for w in layout:
        if not w.targets:
            targets[:, w.start : w.stop] = -100
    return tokens, targets


def starts(layout, valid=None, rows=2):
    """`MicroBatch.starts` of rows that hold several documents, of one token and more; not at padding."""
    first = torch.zeros(rows, layout[-1].stop, dtype=torch.bool)
    for row in range(rows):
        first[row, [at for at in (row + 2, row + 5, row + 6, 11 - row) if at < layout[-1].stop]] = True
    return starts_by_window(first if valid is None else first & valid, layout)


def forward(m, sleep, layout, tokens, targets, passes=None, **options):
    """Run a program by the eager interpreter; `options`: `state`, `valid` and `starts` of the micro-batch, and those of `run`."""
    program = compile(sleep, layout, len(m.layers), passes)
    state = options.pop("state", None) or m.zero_state(sleep, tokens.shape[0])
    batch = MicroBatch(tokens, targets, state, options.pop("valid", None), starts=options.pop("starts", {}))
    return run(m, batch, program, sleep, **options)
