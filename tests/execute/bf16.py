"""How far gradients in bf16 are from those in float64, when a weight is used many times in a step."""

import copy
from dataclasses import dataclass

import torch

from sleeptrain.execute.autograd import CheckpointedExecutor
from sleeptrain.execute.segments import MicroBatch
from sleeptrain.model.config import DeltaNetConfig
from sleeptrain.program import Loop, Sleep, compile
from tests.model import toy

LENGTH, ROWS = 16, 8
NAMES = tuple(f"layers.0.{n}.weight" for n in ("mixer.v", "mixer.o", "mlp.gate", "mlp.up", "mlp.down"))
"""Matrices that are used once in every pass."""


@dataclass(frozen=True)
class Apart:
    """Means over the matrices: the norm of the difference over the norm, and the cosine of the angle."""

    error: float
    cosine: float


def compared(windows: int, passes: int, policy: str | None) -> Apart:
    """Gradients in bf16 against those in float64 by plain autograd, both from the same bf16 weights.

    Every window but the last gets `passes` passes. `policy`: the tape's; None: plain autograd in bf16 too.
    """
    sleep, layout = Sleep(window=LENGTH, loop=Loop(trigger="every")), toy.windows(LENGTH, windows)
    sizes = {"width": 64, "deltanet": DeltaNetConfig(key_heads=2, value_heads=2, head_dim=16), "init_std": 0.02}
    model, (tokens, targets) = toy.model("G", dtype=torch.bfloat16, **sizes), toy.batch(layout, rows=ROWS)
    exact, ours = copy.deepcopy(model).double(), copy.deepcopy(model)
    toy.forward(exact, sleep, layout, tokens, targets, passes).nll.square().sum().backward()
    if policy is None:
        result = toy.forward(ours, sleep, layout, tokens, targets, passes)
    else:
        rows = MicroBatch(tokens, targets, ours.zero_state(sleep, ROWS))
        (result,) = CheckpointedExecutor(ours, [rows], compile(sleep, layout, 1, passes), sleep, policy).run()
    result.nll.square().sum().backward()
    found, wanted = dict(ours.named_parameters()), dict(exact.named_parameters())
    pairs = [(found[n].grad.double().flatten(), wanted[n].grad.flatten()) for n in NAMES]
    error = sum(((a - b).norm() / b.norm()).item() for a, b in pairs) / len(pairs)
    return Apart(error, sum(torch.cosine_similarity(a, b, dim=0).item() for a, b in pairs) / len(pairs))


def table() -> str:
    """Lines of Markdown."""
    rows = {
        "one use of a weight": (1, 1, "pass"),
        "64 uses (64 windows, N = 1), executor": (64, 1, "pass"),
        "64 uses (64 windows, N = 1), plain autograd": (64, 1, None),
        "61 uses (16 windows, N = 4), executor": (16, 4, "window"),
        "61 uses (16 windows, N = 4), plain autograd": (16, 4, None),
    }
    lines = ["| gradients in bf16 against float64 | relative error | 1 - cosine |", "|---|---|---|"]
    for name, case in rows.items():
        apart = compared(*case)
        lines.append(f"| {name} | {apart.error:.2%} | {1 - apart.cosine:.1e} |")
    return "\n".join(lines)
