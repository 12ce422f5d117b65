"""Compares the kernels with the float64 reference on the machine at hand: `python -m sleep_kernels.self_test`.

A run's shapes take a few seconds: `self_test("cuda", [Shape(8, 1024, 16, 32, 128)])`. The whole table of this GPU, and
marking as verified what passed: `python -m sleep_kernels.self_test --write`.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sleep_kernels import choice, reference, verified
from sleep_kernels.delta_inputs import delta_inputs
from sleep_kernels.gated_delta import gated_delta_rule

# Relative errors in the norm. Right kernels have 4e-3 in bfloat16, whose rounding alone is 1.7e-3, and 2e-6 in float32;
# miscompiled ones are wrong by the size of the result.
BOUNDS = {torch.bfloat16: 1.2e-2, torch.float32: 1e-4}
NAMES = ("q", "k", "v", "g", "beta", "initial_state")
Rule = Callable[..., tuple[Tensor, Tensor]]
"""A function of NAMES: output and final state."""


@dataclass(frozen=True)
class Shape:
    """A call of gated_delta_rule. What decides a kernel's code is tested as given: dtype, d, value heads a key head."""

    batch: int
    time: int
    key_heads: int
    value_heads: int
    d: int
    dtype: torch.dtype = torch.bfloat16

    def reduced(self) -> "Shape":
        """Small enough for the token-by-token reference: two sequences, up to two chunks and the rest.

        All heads stay, since strides depend on their number; the reference then computes those of two key heads.
        """
        return replace(self, batch=min(self.batch, 2), time=min(self.time, 128 + self.time % 64))


@dataclass(frozen=True)
class Result:
    """Of one shape: relative errors in the norm by name ("o", "gradient of k", ...), and what to think of them."""

    shape: Shape
    backend: str
    errors: dict[str, float]
    reproducible: bool
    seconds: float

    @property
    def bound(self) -> float:
        return BOUNDS[self.shape.dtype]

    @property
    def ok(self) -> bool:
        # Written so that NaN is not right.
        return self.reproducible and all(error <= self.bound for error in self.errors.values())

    def __str__(self) -> str:
        worst = max(self.errors, key=lambda name: self.errors[name] if self.errors[name] == self.errors[name] else 1e9)
        verdict = "ok" if self.ok else "FAILED"
        same = "" if self.reproducible else ", differs from run to run"
        return (
            f"{verdict}: {self.backend}, {self.shape.dtype}, d={self.shape.d}, "
            f"{self.shape.value_heads // self.shape.key_heads} value heads a key head, {self.shape.time} tokens: "
            f"largest error {self.errors[worst]:.1e} in {worst} (bound {self.bound:.0e}){same}, {self.seconds:.1f} s"
        )


def self_test(
    device: str | torch.device, shapes: Iterable[Shape], backend: str = "triton", seed: int = 0
) -> list[Result]:
    """Outputs, final state and gradients of all six inputs against the float64 reference, one result a shape.

    Both the output and the final state have gradients, and the initial state is not zero. Shapes are reduced (see
    Shape.reduced) and every shape runs twice, to see that nothing depends on the order of execution.
    """
    return [_test(torch.device(device), shape.reduced(), backend, seed) for shape in shapes]


def _test(device: torch.device, shape: Shape, backend: str, seed: int) -> Result:
    start = time.perf_counter()
    inputs, weights = make_inputs(shape, device, seed)
    rule = partial(gated_delta_rule, backend=backend)
    first, second = (run(rule, inputs, weights) for _ in range(2))
    same = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    return Result(shape, backend, errors(first, inputs, weights), same, time.perf_counter() - start)


def run(rule: Rule, inputs: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """Outputs, and gradients of all inputs from those of the outputs, `weights`."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    outputs = rule(*leaves)
    grads = torch.autograd.grad(outputs, leaves, weights)
    return [*(t.detach() for t in outputs), *grads]


def errors(results: list[Tensor], inputs: list[Tensor], weights: list[Tensor]) -> dict[str, float]:
    """Of what `run` returned, by name: relative errors in the norm over the first and the last key head."""
    key_heads, group = inputs[0].shape[2], inputs[2].shape[2] // inputs[0].shape[2]
    keys = sorted({0, key_heads - 1})
    values = [key * group + member for key in keys for member in range(group)]
    heads = [(2, keys), (2, keys), (2, values), (2, values), (2, values), (1, values)]  # of NAMES: dimension, which

    def some(tensors: list[Tensor], where: list[tuple[int, list[int]]]) -> list[Tensor]:
        pairs = zip(tensors, where, strict=True)
        return [t.index_select(dim, torch.tensor(which, device=t.device)).double() for t, (dim, which) in pairs]

    outputs = [heads[2], heads[5]]
    expected = run(_reference, some(inputs, heads), some(weights, outputs))
    names = ("o", "final state", *(f"gradient of {name}" for name in NAMES))
    pairs = zip(names, some(results, outputs + heads), expected, strict=True)
    return {name: ((got - wanted).norm() / wanted.norm()).item() for name, got, wanted in pairs}


def _reference(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    return reference.forward(q, k, v, g, beta, state, q.shape[3] ** -0.5)


def make_inputs(shape: Shape, device: torch.device, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """q, k, v, g, beta, initial state, and the gradients of the two outputs. Keys are partly alike, decays of all sizes."""
    generator = torch.Generator().manual_seed(seed)

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


def layer_errors(device: torch.device, dtype: torch.dtype, d: int) -> dict[str, float]:
    """Relative errors of the kernels before and after the rule, d wide, against plain torch in float64."""
    from sleep_kernels import triton_norm
    from sleep_kernels.gated_norm import gated_rms_norm

    torch.manual_seed(0)
    key_heads, group, time_, kernel = 2, 2, 77, 4
    channels, heads = key_heads * (2 + group) * d, key_heads * group
    sizes = [(2, time_, channels), (2, time_, heads), (2, time_, heads), (channels, kernel), (heads,), (heads,)]
    tensors = [torch.randn(*size).to(device) for size in (*sizes, (2, kernel - 1, channels))]
    tensors = [t if t.dim() == 1 else t.to(dtype) for t in tensors]

    def prepared(backend: str, wide: bool) -> list[Tensor]:
        leaves = [(t.double() if wide else t).requires_grad_() for t in (t.detach().clone() for t in tensors)]
        outputs = delta_inputs(*leaves, key_heads=key_heads, backend=backend)
        torch.manual_seed(1)
        weights = [torch.randn(t.shape).to(dtype).to(device, t.dtype) for t in outputs]
        return [*(t.detach() for t in outputs), *torch.autograd.grad(outputs, leaves, weights)]

    errors = _errors("delta_inputs", prepared("triton", False), prepared("torch", True))
    x, gate, grad = (torch.randn(3000, d).to(device, dtype) for _ in range(3))
    scale = torch.rand(d).to(device)
    plan = choice.for_gpu("gated_rms_norm", device, dtype, d, d, verified_only=False)
    assert plan is not None
    leaves = [t.double().requires_grad_() for t in (x, gate, scale)]
    y = gated_rms_norm(leaves[0], leaves[1], leaves[2], 1e-6)
    expected = [y.detach(), *torch.autograd.grad(y, leaves, grad.double())]
    actual = [triton_norm.forward(x, gate, scale, 1e-6, plan.norm)]
    actual += triton_norm.backward(grad, x, gate, scale, 1e-6, plan.norm)
    return errors | _errors("gated_rms_norm", actual, expected)


def _errors(name: str, actual: list[Tensor], expected: list[Tensor]) -> dict[str, float]:
    pairs = enumerate(zip(actual, expected, strict=True))
    return {f"{name}, result {i}": ((a.double() - b).norm() / b.norm()).item() for i, (a, b) in pairs}


def verify_table(device: torch.device) -> list[tuple[str, int, bool]]:
    """Test every entry of this GPU and Triton; (dtype, d) and whether all passed. Prints a line a test."""
    arch, version = "sm_{}{}".format(*torch.cuda.get_device_capability(device)), choice.triton_version()
    verdicts = []
    for entry in verified.table():
        if (entry["triton"], entry["arch"]) != (version, arch):
            continue
        dtype, d = getattr(torch, entry["dtype"]), entry["d"]
        shapes = [Shape(2, time_, 2, 2 * group, d, dtype) for group in (1, 2) for time_ in (1, 63, 64, 257)]
        results = [r for seed in range(3) for r in self_test(device, shapes, seed=seed)]
        print(*results, sep="\n", flush=True)
        errors = layer_errors(device, dtype, d)
        layer = all(error <= BOUNDS[dtype] for error in errors.values())
        print(f"{'ok' if layer else 'FAILED'}: before and after the rule, {dtype}, d={d}: {max(errors.values()):.1e}")
        verdicts.append((entry["dtype"], d, layer and all(r.ok for r in results)))
    return verdicts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"mark what passed as verified in {verified.TABLE}")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here, so nothing to verify; on a CPU the tests run the kernels in Triton's interpreter")
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    verdicts = verify_table(device)
    if not verdicts:
        arch = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
        print(f"the table has no entry for Triton {choice.triton_version()} on {arch}: {verified.TABLE}")
        return 2
    if arguments.write:
        _mark(verdicts, "sm_{}{}".format(*torch.cuda.get_device_capability(device)))
    return 0 if all(ok for *_, ok in verdicts) else 1


def _mark(verdicts: list[tuple[str, int, bool]], arch: str) -> None:
    """Set verified_on_gpu of the entries that were tested, leaving the file's layout as it is."""
    content = verified.TABLE.read_text()
    for dtype, d, ok in verdicts:
        key = json.dumps({"triton": choice.triton_version(), "arch": arch, "dtype": dtype, "d": d})[1:-1]
        for old in ("true", "false"):
            new = f'{key}, "verified_on_gpu": {"true" if ok else "false"}'
            content = content.replace(f'{key}, "verified_on_gpu": {old}', new)
    verified.TABLE.write_text(content)


if __name__ == "__main__":
    sys.exit(main())
