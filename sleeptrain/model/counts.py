"""Parameter counts by part and FLOPs of a program."""

from __future__ import annotations

import torch
from torch import Tensor

from sleeptrain.model.config import Model
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.work import work_of_full_row
from sleeptrain.program import Pass, Program, Sleep, blocks_of
from sleeptrain.schedule import BlockFlops, backward_blocks, backward_flops, stage_blocks, stage_ops


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


def block_flops(model: Model, letter: str, conv_carry: bool = True) -> BlockFlops:
    """Forward FLOPs of one block. `conv_carry`: later passes read the tail of the convolution, the projections of its last tokens.

    Two FLOPs per multiply-add of every projection, of the convolution, and of the mixer: attention over the pairs that its mask
    allows, or the gated delta rule with three products of d_k * d_v per head and token, to read what a key holds, to write, and to
    read for the query. Norms, activations, decay, softmax and the in-chunk part of kernels are left out.
    """
    width, a, g = model.width, model.attention, model.deltanet
    mlp = 6 * width * model.mlp.hidden
    if letter != "G":
        inner, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
        token, of_pair = mlp + 2 * width * (inner * (3 if a.gate else 2) + 2 * kv), 4.0 * inner
        pairs = (of_pair, 0.0) if letter == "A" else (0.0, of_pair)
        return BlockFlops(token, *pairs, state=4 * width * kv)
    keys, values, rule = g.key_heads * g.head_dim, g.value_heads * g.d_v, g.value_heads * g.head_dim * g.d_v
    linear = 2 * width * (2 * keys + 3 * values + 2 * g.value_heads) + 6 * rule
    # S depends on keys, values, decay and write strength.
    state = 2 * width * (keys + values + 2 * g.value_heads) + 4 * rule
    if g.generator is not None:
        dynamic = 2 * g.generator * (width + g.conv * values) + 2 * g.conv * values
        return BlockFlops(mlp + linear + dynamic, state=state + dynamic)
    state += 2 * g.conv * (keys + values)
    state += 2 * width * keys if conv_carry and g.conv > 1 else 0  # the tail depends on the queries, too
    return BlockFlops(mlp + linear + 2 * g.conv * (2 * keys + values), state=state)


def head_flops(model: Model) -> float:
    """Forward FLOPs of the head per token."""
    return 2 * model.width * (model.vocab or 0)


def flops_of_work(model: Model, program: Program, sleep: Sleep) -> Tensor:
    """Model FLOPs of forward and backward for each unit of work on each window (`work_of_rows`): float64 [windows, 2, 3].

    All passes count; their recomputation does not. Backward costs twice the forward of what a gradient reaches (`backward_blocks`).
    """
    flops = torch.zeros(program.windows, 2, 3, dtype=torch.float64)
    blocks = [block_flops(model, letter, sleep.evict.conv_carry) for letter in model.pattern]
    [stage_ops_by_index] = stage_ops(program, stage_blocks(sleep, len(blocks)))
    for index, reached in backward_blocks(stage_ops_by_index, blocks).items():
        op = program.ops[index]
        assert isinstance(op, Pass)
        of_pass = forward_flops(model, blocks_of(op.layers, sleep, len(blocks)))
        of_pass += torch.tensor(backward_flops(reached, blocks), dtype=torch.float64)
        of_pass[0] += head_flops(model) * (3 if op.grad else 1) if op.loss else 0
        flops[op.window, int(op.last_document)] += of_pass
    return flops


def forward_flops(model: Model, blocks: tuple[int, int], head: bool = False) -> Tensor:
    """Forward FLOPs of a range of blocks, and with `head` of the head, for each unit of work (`work_of_rows`): float64 [3]."""
    letters = model.pattern[blocks[0] : blocks[1]]
    by_letter = {letter: block_flops(model, letter) for letter in set(letters)}
    per_token = sum(by_letter[letter].token for letter in letters) + (head_flops(model) if head else 0)
    pairs = [sum(getattr(by_letter[letter], name) for letter in letters) for name in ("pair", "local_pair")]
    return torch.tensor([per_token, *pairs], dtype=torch.float64)


def step_flops(model: Model, program: Program, sleep: Sleep) -> float:
    """Model FLOPs of forward and backward of one row without padding that is one document."""
    return float((flops_of_work(model, program, sleep) * work_of_full_row(program, model.reaches)).sum())
