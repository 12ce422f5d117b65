"""Contenders for the gated delta rule on a GPU, the roofline, and measurement of the rule and of a whole layer."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch
from machines import Dry, Gpu
from torch import Tensor

from sleep_kernels import delta_inputs, gated_delta_rule, gated_rms_norm
from sleep_kernels.comparison import Rule, Shape, make_layer_inputs

Machine = Gpu | Dry
LIFTED = "fla, guard lifted"


def contenders(lift_guard: bool) -> dict[str, Rule]:
    """Functions of q, k, v, g, beta and the initial state by name."""
    rules: dict[str, Rule] = {name: partial(gated_delta_rule, backend=name) for name in ("triton", "chunked")}
    try:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    except Exception as error:
        print(f"without flash-linear-attention: {type(error).__name__}: {error}", file=sys.stderr)
        return rules

    def fla(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> Any:
        return chunk_gated_delta_rule(q=q, k=k, v=v, g=g, beta=beta, initial_state=state, output_final_state=True)

    if lift_guard:
        from fla.ops.common import chunk_o

        chunk_o.TRITON_ABOVE_3_7_1 = True  # the variable that its version check reads
    return rules | {LIFTED if lift_guard else "fla": fla}


def roofline(shape: Shape, ceilings: dict[str, float]) -> tuple[float, float]:
    """Lower bounds in seconds for forward, and for forward with backward.

    The larger of two times: all arithmetic at the rate of a matrix product, and every input and output moved once at the
    rate of a copy. Chunks have 64 tokens; backward recomputes the states.
    """
    chunk, d, tokens = 64, shape.d, shape.batch * shape.time
    flops = (6 * d * d + 8 * chunk * d, 16 * d * d + 20 * chunk * d + 4 * chunk * chunk)  # per token and value head
    keys, values = 2 * tokens * shape.key_heads * d, 2 * tokens * shape.value_heads * d
    gates, state = 4 * tokens * shape.value_heads, 4 * shape.batch * shape.value_heads * d * d
    # q, k, v, o, both gates and states; then q, k, v, do, dq, dk, dv, gates with their gradients, states with theirs.
    moved = (2 * keys + 2 * values + 2 * gates + 2 * state, 4 * keys + 3 * values + 4 * gates + 4 * state)
    times = [
        max(tokens * shape.value_heads * f / ceilings["matmul_flop_per_s"], b / ceilings["copy_bytes_per_s"])
        for f, b in zip(flops, moved, strict=True)
    ]
    return times[0], sum(times)


def measure(rule: Rule, sets: list[tuple[list[Tensor], list[Tensor]]], machine: Machine) -> dict[str, Any]:
    """Seconds and bytes of one contender; each input set is inputs and gradients of the outputs."""

    def forward(i: int) -> Any:
        with torch.no_grad():
            return rule(*sets[i][0])

    def both(i: int) -> Any:
        return torch.autograd.grad(rule(*sets[i][0]), *sets[i])

    indices = range(len(sets))
    return {
        "forward_s": machine.seconds([partial(forward, i) for i in indices]),
        "both_s": machine.seconds([partial(both, i) for i in indices]),
        "eager_both_s": machine.wall_seconds(partial(both, 0)),
        **machine.memory(lambda: rule(*sets[0][0]), lambda outputs: torch.autograd.grad(outputs, *sets[0])),
    }


def input_sets(
    tensors: list[Tensor], weights: list[Tensor], machine: Machine
) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Copies of the inputs, requiring gradients, and of the outputs' gradients `weights`."""
    count = machine.sets(sum(t.nbytes for t in tensors))
    return [
        ([t.detach().clone().requires_grad_() for t in tensors], [w.clone() for w in weights]) for _ in range(count)
    ]


def layer(shape: Shape, machine: Machine, backend: str) -> dict[str, Any]:
    """As `measure`, for a whole layer without its projections."""
    eps, keys = 1e-6, shape.key_heads

    def rule(*tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        *inputs, gate, norm, state = tensors
        q, k, v, g, beta, tail = delta_inputs(*inputs, key_heads=keys, backend=backend)
        o, state = gated_delta_rule(q, k, v, g, beta, state, backend=backend)
        return gated_rms_norm(o, gate, norm, eps, backend=backend), state, tail

    sizes = (shape.batch, shape.value_heads, shape.d, shape.d)
    tensors = [*make_layer_inputs(shape, machine.device, 0), torch.zeros(sizes, device=machine.device)]
    weights = [tensors[8], tensors[10], tensors[7]]  # tensors of the outputs' shapes: gate, state, tail
    return measure(rule, input_sets(tensors, weights, machine), machine)
