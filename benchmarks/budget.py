"""Budget of a training step of `hybrid-1b` on one GPU: launches, FLOPs, bytes, and the least time that they take on an H200.

The step: two rows of 8 windows of 2,048 tokens, N = 2, micro-batches of one row, bf16, compiled blocks, Muon; no GPU is needed.

    products, elementwise    what TorchInductor launches for a block on an sm_90 device (inductor_schedule.py), with its buffers
    delta rule, inputs, norm from results/kernel_counts.json, counted in Triton's interpreter
    attention                the pairs of the causal mask; queries, keys, values, outputs and their gradients once
    sums                     bf16 gradients of weights added to float32 sums, in every use of a weight
    head, optimizer          operators of torch that the code calls, counted on tensors without memory
    clip, cast               gradients read for their norm (4 bytes), clipped (8), cleared (4), weights written in bf16 (6)

The floor of a launch is the larger of its FLOPs at the rate of a matrix product and its bytes at the rate of a copy; the default rates
are measured ones. Every pass is counted with a whole backward. Left out: embedding, feedback, copies of states, messages, reading of
data. `budget` divides floors by assumed shares (REACHED), those of a profile of an earlier version on an H200; other rows are at the floor.

    python -m benchmarks.budget [--out benchmarks/results/budget.json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module, metadata
from itertools import accumulate
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.inductor_schedule import ScheduledLaunch, compiled, trace
from benchmarks.launches import OWN, accumulated_launches, block_inputs, from_products, functions
from benchmarks.work_counts import COPY, FLOPS, Work, counted
from sleeptrain.engine.muon import Fragment, MatrixPartition, Muon
from sleeptrain.engine.optimizers import kind
from sleeptrain.model.config import Model
from sleeptrain.model.counts import step_flops
from sleeptrain.model.language import LanguageModel
from sleeptrain.program import Pass, Program, Window, compile
from sleeptrain.recipe import load_recipe
from sleeptrain.recipe.recipe import Recipe

RESULTS = Path(__file__).resolve().parent / "results"
ROWS, WINDOWS, VOCAB = 2, 8, 32768
PEAK = 989e12
"""FLOPs a second of an H200 in bf16 by its data sheet."""
REACHED = {"products": 0.9, "attention": 0.19, "delta rule": 0.21, "inputs, norm": 0.25}
"""Assumed shares of the floor."""
OPERATORS = {
    "gated_delta_rule_triton": ("delta rule", "gated_delta_rule", "forward"),
    "gated_delta_rule_triton_backward": ("delta rule", "gated_delta_rule", "backward"),
    "delta_inputs": ("inputs, norm", "delta_inputs", "forward"),
    "delta_inputs_backward": ("inputs, norm", "delta_inputs", "backward"),
    "gated_rms_norm": ("inputs, norm", "gated_rms_norm", "forward"),
    "gated_rms_norm_backward": ("inputs, norm", "gated_rms_norm", "backward"),
}
"""Row of the table, and operator and direction of kernel_counts.json, by operator of a graph."""


def own_work(name: str, tokens: int, heads: int, counts: Mapping[str, Any], launches: Mapping[str, int]) -> Work:
    """An operator of ours over a window, from counts per token and head. Its other launches are of no size."""
    _, operator, direction = OPERATORS[name]
    work = Work()
    for kernel, of in counts["launches"][operator].items():
        if kernel.startswith(direction):
            moved = of["bytes"] * tokens + of["bytes, window"]
            work += Work.of_launch(of.get("flops", 0) * tokens * heads, moved * heads)
    return replace(work, launches=launches[name])


def attention_work(model: Model, tokens: int, backward: bool) -> Work:
    """Attention over a window. Backward computes five products of the pairs to forward's two, with the scores again."""
    a, pairs = model.attention, tokens * (tokens + 1) / 2
    features = 2 * tokens * a.head_dim * (2 * a.heads + 2 * a.kv_heads)
    return Work.of_launch((5 if backward else 2) * 2 * a.heads * a.head_dim * pairs, (2 if backward else 1) * features)


def graph_work(
    scheduled: Sequence[ScheduledLaunch], own: Callable[[str], Work], attends: Callable[..., Work]
) -> dict[str, Work]:
    """The launches of a compiled graph by row of the table."""
    found: dict[str, Work] = {}
    for each in scheduled:
        if each.name.startswith(OWN):
            name = each.name.removeprefix(OWN)
            row, work = OPERATORS[name][0], own(name)
        elif each.name.startswith("launches::"):
            row, work = "attention", attends(backward=each.name.endswith("backward"))
        else:
            row, work = "products" if each.flops else "elementwise", Work.of_launch(each.flops, each.bytes)
        found[row] = found.get(row, Work()) + work
    return found


def of_block(letter: str, model: Model, policy: str, tokens: int, own: Callable[[str], Work]) -> dict[str, Work]:
    """One use of a block: forward, recompute and backward under a policy, and the sums of its weights' gradients."""
    with torch.device("meta"):
        block = LanguageModel(replace(model, layers=letter, vocab=1000), gated=True).bfloat16().layers[0]
    inputs = block_inputs(model.deltanet, model.width, tokens)[: None if letter == "G" else 1]
    if letter == "G":
        block.mixer.backend = "triton"
    forward, backward, shapes, all_shapes = functions(block, inputs)  # type: ignore[arg-type]
    if policy == "selective":
        backward, all_shapes = from_products(forward, backward, shapes, all_shapes)
    attends = partial(attention_work, model, tokens)
    found: dict[str, Work] = {}
    for function, given in ((forward, shapes), (backward, all_shapes)):
        for row, work in graph_work(compiled(trace(function, given, True), given), own, attends).items():
            found[row] = found.get(row, Work()) + work
    # A gradient in bf16, and its float32 sum before and after. The scheduler counts what it writes twice, as sum and as result.
    sums = Work.of_launch(0, 10.0 * sum(weight.numel() for weight in block.parameters()))
    launches = len(accumulated_launches([tuple(weight.shape) for weight in block.parameters()]))
    return found | {"sums": replace(sums, launches=launches)}


def of_head(model: Model, tokens: int) -> Work:
    """Loss of a window in tiles, forward, and again with backward, which computes the logits once more."""
    loss, common = import_module("sleep_kernels.linear_cross_entropy"), import_module("sleep_kernels.common")
    x, weight = (
        torch.empty(tokens, model.width, dtype=torch.bfloat16),
        torch.empty(VOCAB, model.width, dtype=torch.bfloat16),
    )
    targets, nll = torch.zeros(tokens, dtype=torch.int64), torch.empty(tokens)
    on_gpu = partial(mock.patch.object, attribute="device_kind", new=lambda tensor: "cuda")
    with on_gpu(loss), on_gpu(common):
        forward = counted(lambda: loss.forward(x, weight, targets, None, -100, 0.0))
        return forward + counted(lambda: loss.backward(torch.ones_like(nll), x, weight, targets, nll, -100, 0.0))


def of_optimizer(recipe: Recipe, weights: Mapping[str, Tensor]) -> dict[str, Work]:
    """Muon and AdamW over all weights, and what reads and writes gradients and weights around them."""
    optim = recipe.optim
    matrices = [weight for name, weight in weights.items() if kind(name, weight) == "matrix"]
    plain = sum(weight.numel() for weight in weights.values()) - sum(weight.numel() for weight in matrices)
    starts = [0, *accumulate(weight.numel() for weight in matrices)]
    fragments = [
        Fragment(i, start, 0, matrix.numel()) for i, (start, matrix) in enumerate(zip(starts, matrices, strict=False))
    ]

    def update() -> None:
        flat = torch.empty(starts[-1])
        group = {"params": [flat], "muon": True, "weight_decay": optim.weight_decay, "lr": optim.lr}
        optimizer = Muon([group], momentum=optim.momentum, ns_dtype=getattr(torch, optim.ns_dtype))
        optimizer.set_partition(MatrixPartition([(m.shape[0], m.shape[1]) for m in matrices], [fragments], 0, None))
        optimizer.state[flat] = {"momentum_buffer": torch.empty(starts[-1]), "step": torch.empty(())}
        optimizer._update(flat, torch.empty(starts[-1]), optimizer.param_groups[0])

    muon = counted(update)
    # AdamW over one flat tensor: each of about ten operators of torch reads two float32 numbers and writes one.
    adam = Work.of_launch(0, 12.0 * plain) * 10
    elements = sum(weight.numel() for weight in weights.values())
    around = Work.of_launch(0, 22.0 * elements)
    return {"Muon, AdamW": muon + adam, "clip, cast": replace(around, launches=4)}


def budget(policy: str) -> dict[str, Any]:
    """The table of a step under a recompute policy, and its sums."""
    recipe = load_recipe(
        "hybrid-1b", [f"model.vocab={VOCAB}", f"train.batch={ROWS}", f"train.recompute={policy}"]
    ).value
    model, tokens = recipe.model, recipe.sleep.window
    counts = json.loads((RESULTS / "kernel_counts.json").read_text())
    inside = json.loads((RESULTS / "launches.json").read_text())["launches"]["inside our operators"]
    windows = [Window(i * tokens, (i + 1) * tokens, True) for i in range(WINDOWS)]
    program = compile(recipe.sleep, windows, len(model.pattern))
    uses = ROWS * sum(isinstance(op, Pass) for op in program.ops)
    own = partial(own_work, tokens=tokens, heads=model.deltanet.value_heads, counts=counts, launches=inside)
    table: dict[str, Work] = {}
    for letter in sorted(set(model.pattern)):
        for row, work in of_block(letter, model, policy, tokens, own).items():
            table[row] = table.get(row, Work()) + work * (uses * model.pattern.count(letter))
    with torch.device("meta"):
        weights = dict(LanguageModel(model, gated=recipe.sleep.gated).named_parameters())
    table |= {"head": of_head(model, tokens) * (ROWS * WINDOWS)} | of_optimizer(recipe, weights)
    return {"recompute": policy, "rows": _rows(table), "step": _step(table, recipe, program)}


def _rows(table: Mapping[str, Work]) -> dict[str, dict[str, float]]:
    return {
        name: {
            "launches": round(work.launches), "TFLOPs": round(work.flops / 1e12, 2), "GB": round(work.bytes / 1e9, 1),
            "floor, ms": round(1e3 * work.seconds, 1), "budget, ms": round(1e3 * work.seconds / REACHED.get(name, 1), 1),
        }
        for name, work in table.items()
    }  # fmt: skip


def _step(table: Mapping[str, Work], recipe: Recipe, program: Program) -> dict[str, float]:
    floor = sum(work.seconds for work in table.values())
    seconds = sum(work.seconds / REACHED.get(name, 1) for name, work in table.items())
    launches = sum(work.launches for work in table.values())
    flops, tokens = ROWS * step_flops(recipe.model, program, recipe.sleep), ROWS * WINDOWS * recipe.sleep.window
    return {
        "launches": round(launches), "model TFLOPs": round(flops / 1e12, 1),
        "floor, s": round(floor, 3), "MFU at the floor": round(flops / floor / PEAK, 3),
        "budget, s": round(seconds, 3), "MFU": round(flops / seconds / PEAK, 3), "tokens a second": round(tokens / seconds),
        "microseconds a launch before the device waits": round(1e6 * seconds / launches, 1),
    }  # fmt: skip


def table_text(body: Mapping[str, Any]) -> str:
    """A budget as lines."""
    lines = [f"train.recompute: {body['recompute']}", f"{'':14}{'launches':>10}{'TFLOPs':>10}{'GB':>10}{'floor, ms':>12}{'budget, ms':>12}"]  # fmt: skip
    for name, row in body["rows"].items():
        lines.append(f"{name:14}{row['launches']:>10,}{row['TFLOPs']:>10.2f}{row['GB']:>10.1f}{row['floor, ms']:>12.1f}{row['budget, ms']:>12.1f}")  # fmt: skip
    return "\n".join([*lines, *(f"{name}: {value:,}" for name, value in body["step"].items())])


def main() -> None:
    """Print the budgets with block and with selective recompute, or write them with the versions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the budgets there as JSON")
    out = parser.parse_args().out
    bodies = [budget(policy) for policy in ("block", "selective")]
    versions = {name: metadata.version(name) for name in ("torch", "triton")}
    body = {
        "command": "python -m benchmarks.budget", "versions": versions, "rows": ROWS, "windows": WINDOWS, "vocabulary": VOCAB,
        "FLOPs a second": FLOPS, "bytes a second": COPY, "peak": PEAK, "assumed shares": REACHED, "budgets": bodies,
    }  # fmt: skip
    if out:
        out.write_text(json.dumps(body, indent=1) + "\n")
    print(*map(table_text, bodies), sep="\n\n")


if __name__ == "__main__":
    main()
