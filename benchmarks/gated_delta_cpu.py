"""Gated delta rule on one CPU thread: ours against transformers' plain-torch implementations and our token loop.

    OMP_NUM_THREADS=1 python benchmarks/gated_delta_cpu.py --json benchmarks/results/gated_delta_cpu.json

Needs `sleep_kernels` on the path. transformers 5 is included if it is installed. Every round runs all contenders in turn in
this process, so that load on the machine affects all of them; a ratio is the median of the rounds' ratios. Each timed call
follows an untimed call of the same contender, so that it does not pay for memory that another contender left behind. Times
are process CPU time of a forward and backward with gradients of all six inputs.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from sleep_kernels import gated_delta_rule

Inputs = tuple[Tensor, ...]
Rule = Callable[..., tuple[Tensor, Tensor]]

# batch, time, heads, d: long windows, then short windows of toy tasks.
SHAPES = [(4, 512, 4, 32), (4, 512, 4, 64), (4, 512, 4, 128), (64, 24, 4, 16), (64, 25, 4, 32), (128, 24, 4, 32)]


def make_inputs(batch: int, length: int, heads: int, d: int, seed: int = 0) -> Inputs:
    """q, k, v, g, beta, initial_state in float32, requiring gradients."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, length, heads, d, generator=generator) for _ in range(3))
    g = -0.2 * torch.rand(batch, length, heads, generator=generator)
    beta = torch.rand(batch, length, heads, generator=generator)
    state = 0.1 * torch.randn(batch, heads, d, d, generator=generator)
    q, k = (torch.nn.functional.normalize(t, dim=-1) for t in (q, k))
    return tuple(t.requires_grad_() for t in (q, k, v, g, beta, state))


def contenders() -> dict[str, Rule]:
    """Functions of the six inputs by name."""
    rules: dict[str, Rule] = {
        "chunked": lambda *inputs: gated_delta_rule(*inputs, resets=False, backend="chunked"),
        "token loop": lambda *inputs: gated_delta_rule(*inputs, backend="reference"),
    }
    try:
        from transformers.models.qwen3_5 import modeling_qwen3_5
    except ImportError as error:
        print(f"transformers is left out: {error}", file=sys.stderr)
        return rules

    def adapt(function: Callable[..., Any]) -> Rule:
        return lambda *inputs: function(*inputs[:5], initial_state=inputs[5], output_final_state=True)

    rules["transformers"] = adapt(modeling_qwen3_5.torch_chunk_gated_delta_rule)
    rules["transformers loop"] = adapt(modeling_qwen3_5.torch_recurrent_gated_delta_rule)
    return rules


def milliseconds(rule: Rule, inputs: Inputs, weights: Inputs) -> float:
    """CPU time of one forward and backward, after an untimed one."""
    for _ in range(2):
        start = time.process_time_ns()
        torch.autograd.grad(rule(*inputs), inputs, weights)
        elapsed = time.process_time_ns() - start
    return elapsed / 1e6


def check(rules: dict[str, Rule], inputs: Inputs, weights: Inputs) -> float:
    """Largest difference of any gradient from that of the token loop, relative to its largest element."""
    gradients = {name: torch.autograd.grad(rule(*inputs), inputs, weights) for name, rule in rules.items()}
    oracle = gradients["token loop"]
    differences = [
        ((a - b).abs().max() / b.abs().max()).item()
        for grads in gradients.values()
        for a, b in zip(grads, oracle, strict=True)
    ]
    return max(differences)


def measure(rules: dict[str, Rule], shape: tuple[int, int, int, int], rounds: int, loop_rounds: int) -> dict[str, Any]:
    """Median times in milliseconds and median paired ratios to `chunked`; the token loops run in `loop_rounds` rounds only."""
    inputs = make_inputs(*shape)
    generator = torch.Generator().manual_seed(1)
    weights = tuple(torch.randn(t.shape, generator=generator) for t in (inputs[2], inputs[5]))
    error = check(rules, inputs, weights)
    times: dict[str, list[float]] = {name: [] for name in rules}
    for index in range(rounds):
        for name, rule in rules.items():
            if index < loop_rounds or not name.endswith("loop"):
                times[name].append(milliseconds(rule, inputs, weights))
    ratios = {
        name: statistics.median(other / own for other, own in zip(series, times["chunked"], strict=False))
        for name, series in times.items()
        if name != "chunked"
    }
    medians = {name: statistics.median(series) for name, series in times.items()}
    return {"shape": list(shape), "milliseconds": medians, "speedup": ratios, "largest_relative_difference": error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--loop-rounds", type=int, default=5, help="rounds that include the slow token loops")
    parser.add_argument("--json", metavar="FILE", help="write results, hardware and versions to FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rules = contenders()
    print(f"{'batch x time x heads x d':26}" + "".join(f"{name:>20}" for name in rules) + "   speed-up of chunked over")
    results = []
    for shape in SHAPES:
        row = measure(rules, shape, arguments.rounds, arguments.loop_rounds)
        results.append(row)
        times = "".join(f"{row['milliseconds'][name]:17.2f} ms" for name in rules)
        speedups = "  ".join(f"{name} {ratio:.2f}x" for name, ratio in row["speedup"].items())
        print(f"{' x '.join(map(str, shape)):26}{times}   {speedups}", flush=True)
    if arguments.json:
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        if "transformers" in rules:
            versions["transformers"] = metadata.version("transformers")
        report = {
            "command": " ".join(["python", *sys.argv]),
            "hardware": {"cpu": cpu_name(), "threads": 1},
            "versions": versions,
            "unit": "milliseconds of process CPU time, forward and backward, float32",
            "results": results,
        }
        with open(arguments.json, "w") as file:
            json.dump(report, file, indent=1)


def cpu_name() -> str:
    """The model of this machine's processor."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
