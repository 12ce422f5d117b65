"""Comparison of the operators with the float64 reference on random inputs: outputs, states and gradients of all inputs."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sleep_kernels import reference
from sleep_kernels.delta_inputs import delta_inputs
from sleep_kernels.gated_delta import gated_delta_rule
from sleep_kernels.gated_norm import gated_rms_norm

# Bounds of relative errors in the norm. Miscompiled kernels have errors as large as the result.
FLOAT32 = 1e-4
"""Of every result in float32. Correct kernels have 2e-6."""
RULE_BFLOAT16 = {
    "o": 3.7e-3, "final state": 3e-3, "gradient of q": 3.7e-3, "gradient of k": 3.7e-3, "gradient of v": 3.7e-3,
    "gradient of g": 1e-2, "gradient of beta": 5e-3, "gradient of initial_state": 3e-3,
}  # fmt: skip
"""Of the rule in bfloat16, the accuracy contract: what fla-core 0.6.0 has for such inputs. Rounding exact results causes 1.7e-3."""
SLACK = 1.4
"""Factor of these bounds in a self-test, whose few tokens and heads scatter."""
LAYER_BFLOAT16 = 1.2e-2
"""Of the other operators in bfloat16, some of whose results are differences of rounded numbers. Correct kernels have 4e-3."""
SINGLE_TOKEN = 3.0
"""Factor of the bounds of gradients of g and beta where one token is compared: errors of few numbers do not average out."""
WITHOUT_STATE = ", without the state's"
RULE_INPUTS = ("q", "k", "v", "g", "beta", "initial_state")
Rule = Callable[..., tuple[Tensor, Tensor]]
"""A function of the tensors RULE_INPUTS that returns the output and the final state."""
LAYER_INPUTS = ("qkv", "ba", "conv_q", "conv_k", "conv_v", "a_log", "dt_bias", "tail", "gate", "norm")
"""Inputs of the operators around the rule: those of delta_inputs, and two of gated_rms_norm."""
LAYER_GRADIENTS = ("q", "k", "v", "b", "a", *LAYER_INPUTS[2:])
"""Those whose gradients are compared, each by itself."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a layer's operator calls. Heads, d, dtype and taps of the convolution determine a kernel's code."""

    batch: int
    time: int
    key_heads: int
    value_heads: int
    d: int
    dtype: torch.dtype = torch.bfloat16
    taps: int = 4

    def reduced(self) -> "Shape":
        """A shape small enough for the token-by-token reference: two sequences of up to two chunks and a partial one.

        The number of heads is kept, because strides depend on it; the reference computes two key heads only.
        """
        return replace(self, batch=min(self.batch, 2), time=min(self.time, 128 + self.time % 64))


@dataclass(frozen=True)
class ErrorReport:
    """Relative errors in the norm for one shape, by name ("o", "gradient of k", ...), and the verdict."""

    shape: Shape
    backend: str
    errors: dict[str, float]
    reproducible: bool
    seconds: float

    def bound(self, name: str) -> float:
        """The bound of a result's error."""
        if self.shape.dtype == torch.float32:
            return FLOAT32
        result = name.removesuffix(WITHOUT_STATE)
        if result not in RULE_BFLOAT16:
            return LAYER_BFLOAT16
        few = self.shape.time == 1 and result in ("gradient of g", "gradient of beta")
        return RULE_BFLOAT16[result] * (SINGLE_TOKEN if few else SLACK)

    @property
    def ok(self) -> bool:
        # `not error > bound` would accept NaN.
        return self.reproducible and all(error <= self.bound(name) for name, error in self.errors.items())

    def __str__(self) -> str:
        shares = {name: error / self.bound(name) for name, error in self.errors.items()}
        worst = max(shares, key=lambda name: shares[name] if shares[name] == shares[name] else float("inf"))
        verdict = "ok" if self.ok else "FAILED"
        same = "" if self.reproducible else ", differs from run to run"
        return (
            f"{verdict}: {self.backend}, {self.shape.dtype}, d={self.shape.d}, "
            f"{self.shape.value_heads // self.shape.key_heads} value heads per key head, {self.shape.time} tokens: "
            f"largest error {self.errors[worst]:.1e} in {worst} (bound {self.bound(worst):.1e}){same}, {self.seconds:.1f} s"
        )


def compare(device: torch.device, shape: Shape, backend: str, seed: int) -> ErrorReport:
    """Compare all operators of a layer at a shape's reduced size; run them twice and require bit-equal results.

    The rule is run with gradients of output and final state, and with a gradient of the output alone. delta_inputs and
    gated_rms_norm are run without and with padding, and with padding and documents that begin.
    """
    start, shape = time.perf_counter(), shape.reduced()
    inputs, weights = make_rule_inputs(shape, device, seed)
    rule = partial(gated_delta_rule, backend=backend)
    found = rule_errors(rule, inputs, weights)
    found |= {name + WITHOUT_STATE: error for name, error in rule_errors(rule, inputs, weights[:1]).items()}
    again = [run_with_gradients(rule, inputs, weights) for _ in range(2)]
    drawn = torch.rand(2, shape.batch, shape.time, generator=_generator(seed)).to(device)
    valid, starts = drawn[0] < 0.8, (drawn[0] < 0.8) & (drawn[1] < 0.1)
    for mask, masked in (((None, None), ""), ((valid, None), ", padded"), ((valid, starts), ", documents")):
        layer = [
            partial(_run_layer, make_layer_inputs(shape, device, seed), mask, shape, name)
            for name in (backend, "chunked")
        ]
        names = ["q", "k", "v", "g", "beta", "tail", "normed", *(f"gradient of {name}" for name in LAYER_GRADIENTS)]
        narrow, wide = layer[0](None), layer[1](torch.float64)
        found |= {f"the layer's {n}{masked}": relative_error(a, b) for n, a, b in zip(names, narrow, wide, strict=True)}
        again[0] += narrow
        again[1] += layer[0](None)
    same = all(torch.equal(a, b) for a, b in zip(*again, strict=True))
    return ErrorReport(shape, backend, found, same, time.perf_counter() - start)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Relative error in the norm; 0 if both are zero."""
    norm = expected.norm().item()
    return (found.double() - expected).norm().item() / norm if norm else found.double().norm().item()


def run_with_gradients(rule: Rule, inputs: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """Outputs, and the gradients of all inputs; `weights` are the gradients of the first outputs."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    outputs = rule(*leaves)
    grads = torch.autograd.grad(outputs[: len(weights)], leaves, weights)
    return [*(t.detach() for t in outputs), *grads]


def rule_errors(rule: Rule, inputs: list[Tensor], weights: list[Tensor]) -> dict[str, float]:
    """Relative errors in the norm of the results of `run_with_gradients`, by name, over the first and the last key head."""
    key_heads, group = inputs[0].shape[2], inputs[2].shape[2] // inputs[0].shape[2]
    keys = sorted({0, key_heads - 1})
    values = [key * group + member for key in keys for member in range(group)]
    heads = [
        (2, keys),
        (2, keys),
        (2, values),
        (2, values),
        (2, values),
        (1, values),
    ]  # per RULE_INPUTS: dimension, indices

    def some(tensors: list[Tensor], where: list[tuple[int, list[int]]]) -> list[Tensor]:
        pairs = zip(tensors, where, strict=True)
        return [t.index_select(dim, torch.tensor(which, device=t.device)).double() for t, (dim, which) in pairs]

    outputs = [heads[2], heads[5]]
    results = run_with_gradients(rule, inputs, weights)
    expected = run_with_gradients(_reference, some(inputs, heads), some(weights, outputs[: len(weights)]))
    names = ("o", "final state", *(f"gradient of {name}" for name in RULE_INPUTS))
    pairs = zip(names, some(results, outputs + heads), expected, strict=True)
    return {name: relative_error(got, wanted) for name, got, wanted in pairs}


def _reference(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    return reference.forward(q, k, v, g, beta, state, q.shape[3] ** -0.5)


def make_rule_inputs(shape: Shape, device: torch.device, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors RULE_INPUTS, and gradients of the two outputs. Keys are correlated, and decays are of all magnitudes."""
    generator = _generator(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator)

    tokens, heads, d = (shape.batch, shape.time), shape.value_heads, shape.d
    k = normal(*tokens, shape.key_heads, d) + 0.7 * normal(shape.batch, 1, shape.key_heads, d)
    q, v = normal(*tokens, shape.key_heads, d), normal(*tokens, heads, d)
    g = -torch.exp(normal(*tokens, heads) * 2 - 3)
    beta = torch.sigmoid(normal(*tokens, heads))
    state = 0.3 * normal(shape.batch, heads, d, d)
    inputs = [t.to(shape.dtype) for t in (F.normalize(q, dim=-1), F.normalize(k, dim=-1), v)] + [g, beta, state]
    weights = [normal(*tokens, heads, d).to(shape.dtype), 0.3 * normal(shape.batch, heads, d, d)]
    return [t.to(device) for t in inputs], [t.to(device) for t in weights]


def make_layer_inputs(shape: Shape, device: torch.device, seed: int) -> list[Tensor]:
    """The tensors LAYER_INPUTS."""
    generator, d, keys, heads = _generator(seed), shape.d, shape.key_heads, shape.value_heads
    tokens, convs = (shape.batch, shape.time), [(keys * d, shape.taps)] * 2 + [(heads * d, shape.taps)]
    sizes: list[tuple[int, ...]] = [(*tokens, (2 * keys + heads) * d), (*tokens, 2 * heads), *convs, (heads,), (heads,)]
    sizes += [(shape.batch, shape.taps - 1, keys, (2 + heads // keys) * d), (*tokens, heads, d), (d,)]
    tensors = [torch.randn(size, generator=generator).to(device) for size in sizes]
    return [t if t.dim() == 1 else t.to(shape.dtype) for t in tensors]


def _run_layer(
    tensors: list[Tensor], mask: tuple[Tensor | None, ...], shape: Shape, backend: str, dtype: torch.dtype | None
) -> list[Tensor]:
    """Results of delta_inputs, gated_rms_norm of its v, and LAYER_GRADIENTS; inputs are cast to `dtype` if given.

    `mask`: the arguments `valid` and `starts`. Infinite log decays are returned as 1, which no log decay is.
    """
    leaves = [t.to(dtype or t.dtype).detach().requires_grad_() for t in tensors]
    inputs: Any = (*leaves[:8], *mask)
    outputs = delta_inputs(*inputs, key_heads=shape.key_heads, strength=2.0, backend=backend)
    outputs += (gated_rms_norm(outputs[2], leaves[8], leaves[9], 1e-6, backend=backend),)  # type: ignore[assignment]
    generator = _generator(1)
    weights = [torch.randn(t.shape, generator=generator).to(shape.dtype).to(t.device, t.dtype) for t in outputs]
    results = [t.detach() for t in outputs]
    results[3] = results[3].masked_fill(results[3].isinf(), 1)
    d_qkv, d_ba, *others = torch.autograd.grad(outputs, leaves, weights)
    channels = [conv.shape[0] for conv in leaves[2:5]]
    return [*results, *d_qkv.split(channels, 2), *d_ba.chunk(2, 2), *others]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
