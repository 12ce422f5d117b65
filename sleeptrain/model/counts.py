"""What a model costs: parameters by part, and FLOPs of a program."""

from __future__ import annotations

from sleeptrain.model.config import Model
from sleeptrain.model.language import LanguageModel
from sleeptrain.program import Pass, Program, Sleep, blocks_of


def parameters(model: LanguageModel) -> dict[str, int]:
    """Number of parameters by part: embedding, attention, deltanet, mlp, norms, head, total (a tied head counts 0)."""
    count = dict.fromkeys(("embedding", "attention", "deltanet", "mlp", "norms", "head", "total"), 0)
    for name, parameter in model.named_parameters():
        count[_part(name, model.config.pattern)] += parameter.numel()
        count["total"] += parameter.numel()
    return count


def _part(name: str, pattern: str) -> str:
    if name.startswith(("embed.", "head.")):
        return "embedding" if name.startswith("embed.") else "head"
    if not name.startswith("layers."):
        return "norms"
    _, layer, part, *_ = name.split(".")
    if part == "mixer":
        return "deltanet" if pattern[int(layer)] == "G" else "attention"
    return "mlp" if part == "mlp" else "norms"


def block_flops(model: Model, letter: str, time: int, cached: int) -> float:
    """Forward FLOPs of one block over one row's window of `time` tokens with `cached` keys before it.

    Twice the multiply-adds of every projection, plus the mixer itself: causal attention over half the square, or the
    gated delta rule at 6 d^2 a head and token (decay, read, write) without its in-chunk part.
    """
    width, a, g = model.width, model.attention, model.deltanet
    mlp = 6 * width * model.mlp.hidden
    if letter == "A":
        inner = a.heads * a.head_dim
        linear = 2 * width * (inner * (3 if a.gate else 2) + 2 * a.kv_heads * a.head_dim)
        return time * (mlp + linear) + 4 * inner * time * (cached + (time + 1) / 2)
    keys, values = g.key_heads * g.head_dim, g.value_heads * g.head_dim
    linear = 2 * width * (2 * keys + 3 * values + 2 * g.value_heads) + 2 * g.conv * (2 * keys + values)
    return time * (mlp + linear + 6 * g.value_heads * g.head_dim**2)


def step_flops(model: Model, program: Program, sleep: Sleep) -> float:
    """Model FLOPs of one row through forward and backward: passes count as work, recomputing them does not.

    Backward costs twice the forward of every pass that carries gradient.
    """
    total = 0.0
    for op in program.ops:
        if not isinstance(op, Pass):
            continue
        first, stop = blocks_of(op.layers, sleep, len(model.pattern))
        cached = sleep.window - 1 if op.kv_read else 0
        time = op.stop - op.start
        forward = sum(block_flops(model, letter, time, cached) for letter in model.pattern[first:stop])
        if op.loss:
            forward += 2 * time * model.width * (model.vocab or 0)
        total += forward * (3 if op.grad else 1)
    return total
