"""What our kernels compute, move and allocate, counted in Triton's interpreter; registers, spills and compile time for sm_90.

For each launch of the gated delta rule, of delta_inputs and of gated_rms_norm, forward and backward, in bf16 at d = 128 with the launch
configuration of the table:

    FLOPs      two for each multiply-add of tl.dot
    bytes      distinct bytes that a launch reads plus those that it writes: its traffic where every re-read hits a cache
    accessed   bytes of all loads and stores

They are per token and value head, for one value head per key head, from windows of 64 and 128 tokens: what a window needs besides (the
fast weights in float32, the tail of the convolution) is given apart. `minimum`: inputs and outputs of the operators, each once.
`allocated`: the peak of forward and backward beyond inputs. Float32 sums over tokens that torch makes are not counted; there are none
in this shape.

    python -m benchmarks.kernel_counts [--out benchmarks/results/kernel_counts.json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor

from benchmarks.allocated import allocated

TRITON, ARCHITECTURE, D, HEADS = "3.7.1", "sm_90", 128, 1
SHORT, LONG = 64, 128
"""Tokens of the two windows: one and two chunks."""
ROOT = Path(__file__).parents[1]
STATIC = ROOT / "tests/kernels/static_compile.py"
Counts = dict[str, float]
Counting = Callable[[], AbstractContextManager[Any]]


class LaunchCounter:
    """Counts what kernels of Triton's interpreter do, by kernel."""

    def __init__(self) -> None:
        self.by_kernel: dict[str, Counts] = defaultdict(lambda: defaultdict(float))
        self._now: Counts = {}
        self._touched: dict[str, list[np.ndarray]] = {}

    def access(self, kind: str, pointers: Any, mask: Any) -> None:
        """Count a load or store of masked pointers."""
        size = pointers.get_element_ty().primitive_bitwidth // 8
        addresses = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].ravel().astype(np.uint64)
        self._now["accessed"] += size * addresses.size
        self._touched[kind].append((addresses[:, None] + np.arange(size, dtype=np.uint64)).ravel())

    @contextmanager
    def launch(self, name: str) -> Iterator[None]:
        """Everything within belongs to one launch of a kernel."""
        self._now, self._touched = self.by_kernel[name], {"read": [], "written": []}
        self._now["launches"] += 1
        yield
        for parts in self._touched.values():
            self._now["bytes"] += len(np.unique(np.concatenate(parts))) if parts else 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count every launch within."""
        from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

        run, dot = GridExecutor.__call__, InterpreterBuilder.create_dot
        load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

        def launched(executor: Any, *args: Any, **kwargs: Any) -> Any:
            with self.launch(executor.fn.__name__):
                return run(executor, *args, **kwargs)

        def multiplied(builder: Any, a: Any, b: Any, *rest: Any) -> Any:
            self._now["flops"] += 2 * a.data.shape[0] * a.data.shape[1] * b.data.shape[1]
            return dot(builder, a, b, *rest)

        def loaded(builder: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
            self.access("read", pointers, mask)
            return load(builder, pointers, mask, *rest)

        def stored(builder: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
            self.access("written", pointers, mask)
            return store(builder, pointers, value, mask, *rest)

        with (
            mock.patch.object(GridExecutor, "__call__", launched),
            mock.patch.multiple(
                InterpreterBuilder, create_dot=multiplied, create_masked_load=loaded, create_masked_store=stored
            ),
        ):
            yield


def operators(time: int) -> dict[str, tuple[Callable[..., Any], list[Tensor]]]:
    """The three operators of a layer with inputs of one window."""
    from sleep_kernels import delta_inputs, gated_delta_rule, gated_rms_norm

    def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(*shape).to(dtype)

    q, k, v, o = (torch.nn.functional.normalize(normal(1, time, HEADS, D), dim=-1) for _ in range(4))
    g, beta = -normal(1, time, HEADS, dtype=torch.float32).abs(), torch.rand(1, time, HEADS)
    convolved = [normal(1, time, 3 * HEADS * D), normal(1, time, 2 * HEADS)]
    weights = [normal(HEADS * D, 4) for _ in range(3)] + [normal(HEADS, dtype=torch.float32) for _ in range(2)]

    def inputs(*tensors: Tensor) -> Any:
        return delta_inputs(*tensors, key_heads=HEADS, backend="triton")

    def rule(*tensors: Tensor) -> Any:
        return gated_delta_rule(*tensors, backend="triton")

    def norm(*tensors: Tensor) -> Any:
        return gated_rms_norm(*tensors, 1e-6, backend="triton")

    return {
        "delta_inputs": (inputs, [*convolved, *weights, normal(1, 3, HEADS, 3 * D)]),
        "gated_delta_rule": (rule, [q, k, v, g, beta, normal(1, HEADS, D, D, dtype=torch.float32)]),
        "gated_rms_norm": (norm, [o, normal(1, time, HEADS, D), normal(D, dtype=torch.float32)]),
    }


def of_operator(operator: Callable[..., Any], leaves: list[Tensor]) -> dict[str, Counts]:
    """Counts of one operator, forward and backward, by launch; `minimum` and `allocated`."""
    forward, backward = LaunchCounter(), LaunchCounter()
    outputs, gradients, grads = both(operator, leaves, forward.counting, backward.counting)
    moved = sum(t.nbytes for t in (*leaves, *outputs)) + sum(t.nbytes for t in (*leaves, *gradients, *grads))
    found = {f"forward, {name}": dict(counts) for name, counts in forward.by_kernel.items()}
    found |= {f"backward, {name}": dict(counts) for name, counts in backward.by_kernel.items()}
    entering = sum(t.nbytes for t in gradients)  # a caller holds them
    # Without running kernels: the interpreter keeps their arguments in reference cycles.
    _, peak = allocated(lambda: both(operator, leaves, not_running, not_running))
    return found | {"minimum": {"bytes": moved}, "allocated": {"bytes": peak - entering}}


def both(
    operator: Callable[..., Any], leaves: list[Tensor], in_forward: Counting, in_backward: Counting
) -> tuple[Any, list[Tensor], Any]:
    """Outputs of an operator, their gradients, and those of its inputs."""
    with in_forward():
        outputs = operator(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    gradients = [torch.ones_like(output) for output in outputs]
    with in_backward():
        return outputs, gradients, torch.autograd.grad(outputs, leaves, gradients)


def not_running() -> AbstractContextManager[Any]:
    """Within, kernels are launched and do nothing."""
    from triton.runtime.interpreter import GridExecutor

    return mock.patch.object(GridExecutor, "__call__", lambda *args, **kwargs: None)


def of_window(time: int, only: str | None) -> dict[str, dict[str, Counts]]:
    """Counts of one window by operator, or of one operator."""
    return {
        name: of_operator(operator, [tensor.requires_grad_() for tensor in tensors])
        for name, (operator, tensors) in operators(time).items()
        if only in (None, name)
    }


def per_token(short: dict[str, Counts], long: dict[str, Counts]) -> dict[str, Counts]:
    """Counts per token and value head, and those of a window and value head besides ("window"), from two windows."""
    found: dict[str, Counts] = {}
    for kernel, counts in long.items():
        for what, value in counts.items():
            slope = (value - short[kernel][what]) / (LONG - SHORT)
            row = found.setdefault(kernel, {})
            if what == "launches":
                row[what] = value
            else:
                row[what] = round(slope / HEADS, 1)
                row[f"{what}, window"] = round((value - slope * LONG) / HEADS)
    return found


def totals(kernels: dict[str, Counts], tokens: int) -> dict[str, float]:
    """Sums over the launches of an operator per token and value head, in windows of `tokens` tokens."""
    at = {kernel: {w: c.get(w, 0) + c.get(f"{w}, window", 0) / tokens for w in ("flops", "bytes", "accessed")} for kernel, c in kernels.items()}  # fmt: skip
    minimum, allocated_bytes = at.pop("minimum")["bytes"], at.pop("allocated")["bytes"]
    sums = {what: round(sum(counts[what] for counts in at.values())) for what in ("flops", "bytes", "accessed")}
    return sums | {"minimum": round(minimum), "allocated": round(allocated_bytes)}


def measure(only: str | None) -> dict[str, Any]:
    """Counts per token and value head by operator and launch, and their sums in windows of 1,024 tokens; of one operator alone if
    there is one."""
    from sleep_kernels import verified

    config = verified.find(TRITON, ARCHITECTURE, "bfloat16", D)
    # d = 128 is too large for tests in the interpreter, and their tiles are smaller.
    chooses = "sleep_kernels.triton_gdr._interpreter_config"
    torch.manual_seed(0)
    with mock.patch(chooses, lambda q, v: config), mock.patch.object(verified, "interpreted", lambda: config):
        short, long = of_window(SHORT, only), of_window(LONG, only)
    kernels = {name: per_token(short[name], long[name]) for name in long}
    sums = {name: totals(found, 1024) for name, found in kernels.items()}
    around = [sums[name] for name in ("delta_inputs", "gated_rms_norm") if name in sums]
    found: dict[str, Any] = {"windows of 1024 tokens": sums}
    if only is None:
        ratio = sum(s["bytes"] for s in around) / sum(s["minimum"] for s in around)
        found["delta_inputs and gated_rms_norm: bytes over the minimum"] = round(ratio, 3)
    return found | {"launches": kernels}


def static() -> Any:
    """Registers, spills, shared memory and seconds of compilation by kernel, in a process without the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(STATIC), "--only", f"bfloat16-{D}"]
    return json.loads(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Print the counts, or write them with the versions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["delta_inputs", "gated_delta_rule", "gated_rms_norm"], help="one operator")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write the counts there as JSON, with registers and compile times"
    )
    arguments = parser.parse_args()
    versions = {name: metadata.version(name) for name in ("torch", "triton")}
    body = {"command": "python -m benchmarks.kernel_counts", "d": D, "versions": versions, **measure(arguments.only)}
    if arguments.out:
        body["static, sm_90"] = static()["kernels"]
        arguments.out.write_text(json.dumps(body, indent=1) + "\n")
    print(json.dumps(body, indent=1))


if __name__ == "__main__":
    main()
