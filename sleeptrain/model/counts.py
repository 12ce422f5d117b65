"""Parameter counts by part and FLOPs of a program."""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import Tensor

from sleeptrain.model.config import Model
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.trained import ALL_TRAINED, TrainedWeights
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


def block_flops(
    model: Model, letter: str, conv_carry: bool = True, trained: Container[str] | None = None
) -> BlockFlops:
    """Forward FLOPs of one block. `conv_carry`: later passes read the tail of the convolution, the projections of its last tokens.

    Two FLOPs per multiply-add of every projection, of the convolution, and of the mixer: attention over the pairs that its mask
    allows, or the gated delta rule with three products of d_k * d_v per head and token, to read what a key holds, to write, and to
    read for the query. Norms, activations, decay, softmax and the in-chunk part of kernels are left out. `trained`: the trained
    weights by their names in the block (`TrainedWeights.of_block`).
    """
    products, a, g = _products(model, letter), model.attention, model.deltanet
    of_pair, rest, state, names = 0.0, 0.0, 0.0, set[str]()
    if letter != "G":
        of_pair, names = 4.0 * a.heads * a.head_dim, {"k", "v"}
    else:
        rule = g.value_heads * g.head_dim * g.d_v
        dynamic = 2 * g.conv * g.value_heads * g.d_v if g.generator is not None else 0
        rest, state = 6 * rule + dynamic, 4 * rule + dynamic
        # S depends on keys, values, decay and write strength; the tail depends on the queries, too.
        names = {"k", "v", "b", "a", "conv_k", "conv_v", "generator_in", "generator_out"}
        names |= {"q"} if g.generator is None and conv_carry and g.conv > 1 else set()
    read = {f"mixer.{name}{suffix}" for name in names for suffix in ("", ".weight")}
    frozen = {name: flops for name, flops in products.items() if trained is not None and name not in trained}
    return BlockFlops(
        sum(products.values()) + rest,
        *((of_pair, 0.0) if letter != "L" else (0.0, of_pair)),
        state=sum(flops for name, flops in products.items() if name in read) + state,
        frozen=sum(frozen.values()),
        frozen_state=sum(flops for name, flops in frozen.items() if name in read),
    )


def _products(model: Model, letter: str) -> dict[str, float]:
    """Forward FLOPs per token of the products of a block with its weights, by the weight's name in the block."""
    width, a, g, hidden = model.width, model.attention, model.deltanet, model.mlp.hidden
    if letter != "G":
        inner, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
        sizes = {"q": inner, "k": kv, "v": kv, "o": inner} | ({"gate": inner} if a.gate else {})
    else:
        keys, values = g.key_heads * g.head_dim, g.value_heads * g.d_v
        sizes = {"q": keys, "k": keys, "v": values, "z": values, "o": values, "a": g.value_heads, "b": g.value_heads}
        sizes |= {} if g.generator is None else {"generator_in": g.generator}
    found = {f"mixer.{name}.weight": 2.0 * width * size for name, size in sizes.items()}
    if letter == "G" and g.generator is not None:
        found["mixer.generator_out.weight"] = 2.0 * g.generator * g.conv * values
    elif letter == "G":
        found |= {f"mixer.conv_{name}": 2.0 * g.conv * sizes[name] for name in "qkv"}
    return found | {f"mlp.{name}.weight": 2.0 * width * hidden for name in ("gate", "up", "down")}


def head_flops(model: Model) -> float:
    """Forward FLOPs of the head per token."""
    return 2 * model.width * (model.vocab or 0)


def head_backward_flops(model: Model, trained: TrainedWeights = ALL_TRAINED) -> float:
    """FLOPs of the backward of the head per token."""
    return head_flops(model) * (2 if ("embed.weight" if model.tie else "head.weight") in trained else 1)


def stack_flops(model: Model, sleep: Sleep, trained: TrainedWeights = ALL_TRAINED) -> tuple[BlockFlops, ...]:
    """Forward FLOPs of every block."""
    kinds = [(letter, trained.of_block(layer)) for layer, letter in enumerate(model.pattern)]
    known = {each: block_flops(model, each[0], sleep.evict.conv_carry, each[1]) for each in set(kinds)}
    return tuple(known[each] for each in kinds)


def flops_of_work(model: Model, program: Program, sleep: Sleep, trained: TrainedWeights = ALL_TRAINED) -> Tensor:
    """Model FLOPs of forward and backward for each unit of work on each window (`work_of_rows`): float64 [windows, 2, 3].

    All passes count; their recomputation does not. Backward costs twice the forward of what a gradient reaches (`backward_blocks`),
    without the gradients of weights that are not in `trained`.
    """
    flops = torch.zeros(program.windows, 2, 3, dtype=torch.float64)
    blocks = stack_flops(model, sleep, trained)
    [stage_ops_by_index] = stage_ops(program, stage_blocks(sleep, len(blocks)))
    for index, reached in backward_blocks(stage_ops_by_index, blocks, trained.first_block).items():
        op = program.ops[index]
        assert isinstance(op, Pass)
        of_pass = forward_flops(model, blocks_of(op.layers, sleep, len(blocks)))
        of_pass += torch.tensor(backward_flops(reached, blocks), dtype=torch.float64)
        of_pass[0] += head_flops(model) + (head_backward_flops(model, trained) if op.grad else 0) if op.loss else 0
        flops[op.window, int(op.last_document)] += of_pass
    return flops


def forward_flops(model: Model, blocks: tuple[int, int], head: bool = False) -> Tensor:
    """Forward FLOPs of a range of blocks, and with `head` of the head, for each unit of work (`work_of_rows`): float64 [3]."""
    letters = model.pattern[blocks[0] : blocks[1]]
    by_letter = {letter: block_flops(model, letter) for letter in set(letters)}
    per_token = sum(by_letter[letter].token for letter in letters) + (head_flops(model) if head else 0)
    pairs = [sum(getattr(by_letter[letter], name) for letter in letters) for name in ("pair", "local_pair")]
    return torch.tensor([per_token, *pairs], dtype=torch.float64)


def step_flops(model: Model, program: Program, sleep: Sleep, trained: TrainedWeights = ALL_TRAINED) -> float:
    """Model FLOPs of forward and backward of one row without padding that is one document."""
    return float((flops_of_work(model, program, sleep, trained) * work_of_full_row(program, model.reaches)).sum())
