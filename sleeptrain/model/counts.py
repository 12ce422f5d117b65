"""Parameter counts by part and FLOPs of a program."""

from __future__ import annotations

import torch
from torch import Tensor

from sleeptrain.model.config import Model
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.work import work_of_full_row
from sleeptrain.program import Pass, Program, Sleep, blocks_of


def parameters(model: LanguageModel) -> dict[str, int]:
    """Numbers of parameters by part: embedding, attention, deltanet, mlp, norms, head, total (a tied head counts 0)."""
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


def block_flops(model: Model, letter: str) -> tuple[float, float]:
    """Forward FLOPs of one block: per token, and per pair of a query and a key that it attends to (0 for Gated DeltaNet).

    Two FLOPs per multiply-add of every projection, plus the mixer: attention over causal pairs, or the gated delta rule
    with 6 d^2 per head and token (decay, read, write), without its in-chunk part. Norms and activations are left out.
    """
    width, a, g = model.width, model.attention, model.deltanet
    mlp = 6 * width * model.mlp.hidden
    if letter == "A":
        inner = a.heads * a.head_dim
        linear = 2 * width * (inner * (3 if a.gate else 2) + 2 * a.kv_heads * a.head_dim)
        return mlp + linear, 4 * inner
    keys, values = g.key_heads * g.head_dim, g.value_heads * g.head_dim
    linear = 2 * width * (2 * keys + 3 * values + 2 * g.value_heads) + 2 * g.conv * (2 * keys + values)
    return mlp + linear + 6 * g.value_heads * g.head_dim**2, 0.0


def head_flops(model: Model) -> float:
    """Forward FLOPs of the head per token."""
    return 2 * model.width * (model.vocab or 0)


def flops_of_work(model: Model, program: Program, sleep: Sleep) -> Tensor:
    """Model FLOPs of forward and backward for each unit of work on each window (`work_of_rows`): float64 [windows, 2, 2].

    All passes count; their recomputation does not. Backward of a pass costs twice its forward; a pass without gradient has none.
    """
    flops = torch.zeros(program.windows, 2, 2, dtype=torch.float64)
    for op in program.ops:
        if isinstance(op, Pass):
            forward = forward_flops(model, blocks_of(op.layers, sleep, len(model.pattern)), head=op.loss)
            flops[op.window, int(op.last_document)] += forward * (3 if op.grad else 1)
    return flops


def forward_flops(model: Model, blocks: tuple[int, int], head: bool = False) -> Tensor:
    """Forward FLOPs of a range of blocks, and with `head` of the head, for each token and for each pair: float64 [2]."""
    letters = model.pattern[blocks[0] : blocks[1]]
    by_letter = {letter: block_flops(model, letter) for letter in set(letters)}
    per_token, per_pair = (sum(by_letter[letter][unit] for letter in letters) for unit in (0, 1))
    return torch.tensor([per_token + (head_flops(model) if head else 0), per_pair], dtype=torch.float64)


def step_flops(model: Model, program: Program, sleep: Sleep) -> float:
    """Model FLOPs of forward and backward of one row without padding that is one document."""
    return float((flops_of_work(model, program, sleep) * work_of_full_row(program, model.attention.window)).sum())
