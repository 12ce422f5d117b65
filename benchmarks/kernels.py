"""The kernels on a GPU: ceilings, correctness, then times beside flash-linear-attention's, the ratios last.

    python benchmarks/kernels.py --json benchmarks/results/kernels.json

Per shape: CUDA graphs of a forward and of a forward with backward (gradients of all six inputs), the median over
replays that go round several input sets, together larger than the L2 cache; wall-clock time of eager calls back to back;
memory. flash-linear-attention takes part where `fla` can be imported; for its Triton path set
FLA_DISABLE_BACKEND_DISPATCH=1. Under Triton 3.4 to 3.7.0 on Hopper its backward raises; that row then says so. Without a
GPU it says "no GPU run" and compares `chunked` with the token loop on the CPU, in seconds.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from sleep_kernels import gated_delta_rule
from sleep_kernels.comparison import Rule, Shape, errors, make_inputs
from sleep_kernels.self_test import self_test

# batch, time, key heads, value heads, d
SHAPES = [(8, 512, 16, 16, 128), (8, 1024, 16, 16, 128), (4, 2048, 16, 16, 128), (8, 4096, 16, 16, 128)]
SHAPES += [(1, 4096, 32, 32, 128), (8, 2048, 16, 16, 64), (8, 1024, 16, 32, 128)]
L2_BYTES = 60 << 20  # of an H200; larger than others'


def contenders() -> dict[str, Rule]:
    """Name -> function of q, k, v, g, beta and the initial state."""
    rules: dict[str, Rule] = {
        name: lambda *t, name=name: gated_delta_rule(*t, backend=name) for name in ("triton", "chunked")
    }
    try:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    except Exception as error:
        print(f"without flash-linear-attention: {type(error).__name__}: {error}", file=sys.stderr)
        return rules

    def fla(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> Any:
        return chunk_gated_delta_rule(q, k, v, g, beta, initial_state=state, output_final_state=True)

    rules["fla"] = fla
    return rules


def ceilings() -> dict[str, float]:
    """Copy bandwidth in bytes/s and bf16 matmul rate in FLOP/s of this GPU."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    copy = graph_seconds([lambda: target.copy_(source)], 20)
    matmul = graph_seconds([lambda: a @ b], 20)
    return {"copy_bytes_per_s": 2 * source.numel() / copy, "matmul_flop_per_s": 2 * 8192**3 / matmul}


def graph_seconds(calls: list[Callable[[], Any]], replays: int) -> float:
    """Median time of a call over `replays` replays of each one's CUDA graph, going round the calls."""
    graphs = []
    stream = torch.cuda.Stream()
    for call in calls:
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            call()
        graphs.append(graph)
    times = []
    for index in range(replays + len(graphs)):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graphs[index % len(graphs)].replay()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / 1e3)
    return statistics.median(times[len(graphs) :])


def eager_seconds(call: Callable[[], Any], calls: int = 200) -> float:
    """Wall-clock time of one of `calls` calls back to back."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls


def relative_errors(rule: Rule, shape: Shape) -> dict[str, float]:
    """Of outputs and gradients on fresh inputs, against the float64 reference at the shape's reduced size."""
    return errors(rule, *make_inputs(shape.reduced(), torch.device("cuda"), seed=time.time_ns() % 2**31))


def measure(rule: Rule, shape: Shape, replays: int) -> dict[str, Any]:
    """Seconds and bytes of one contender on one shape."""
    one, _ = make_inputs(shape, torch.device("cuda"), 0)
    sets = max(4, -(-2 * L2_BYTES // sum(t.nbytes for t in one)))
    inputs = [make_inputs(shape, torch.device("cuda"), seed) for seed in range(sets)]
    leaves = [[t.requires_grad_() for t in tensors] for tensors, _ in inputs]
    weights = [w for _, w in inputs]

    def forward(i: int) -> Any:
        with torch.no_grad():
            return rule(*leaves[i])

    def both(i: int) -> Any:
        return torch.autograd.grad(rule(*leaves[i]), leaves[i], weights[i])

    result = {
        "forward_s": graph_seconds([lambda i=i: forward(i) for i in range(sets)], replays),
        "both_s": graph_seconds([lambda i=i: both(i) for i in range(sets)], replays),
        "eager_both_s": eager_seconds(lambda: both(0)),
    }
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    outputs = rule(*leaves[0])
    result["kept_bytes"] = torch.cuda.memory_allocated() - before - sum(t.nbytes for t in outputs)
    torch.autograd.grad(outputs, leaves[0], weights[0])
    result["peak_bytes"] = torch.cuda.max_memory_allocated() - before
    return result


def run_gpu(shapes: list[tuple[int, ...]], replays: int) -> dict[str, Any]:
    """All of it; prints as it goes."""
    rules, report = contenders(), {"ceilings": ceilings(), "rows": []}
    print(json.dumps(report["ceilings"]))
    for sizes in shapes:
        shape = Shape(*sizes)
        print(*self_test("cuda", [shape]), flush=True)
        row: dict[str, Any] = {"shape": list(sizes), "contenders": {}}
        for name, rule in rules.items():
            try:
                row["contenders"][name] = {"errors": relative_errors(rule, shape), **measure(rule, shape, replays)}
            except Exception as error:  # a contender that cannot run here is a result too
                row["contenders"][name] = {"failed": f"{type(error).__name__}: {error}"[:300]}
                torch.cuda.synchronize()
            print("x".join(map(str, sizes)), name, json.dumps(row["contenders"][name]), flush=True)
        report["rows"].append(row)
    print_ratios(report["rows"])
    return report


def print_ratios(rows: list[dict[str, Any]]) -> None:
    """How many times our time the others take."""
    print(f"\n{'shape':26}{'against':>10}{'forward':>10}{'both':>10}{'eager':>10}{'peak memory':>14}")
    for row in rows:
        ours = row["contenders"]["triton"]
        for name, other in row["contenders"].items():
            if name != "triton" and "failed" not in ours and "failed" not in other:
                keys = ("forward_s", "both_s", "eager_both_s", "peak_bytes")
                ratios = "".join(
                    f"{other[key] / ours[key]:{width}.2f}" for key, width in zip(keys, (10, 10, 10, 14), strict=True)
                )
                print(f"{'x'.join(map(str, row['shape'])):26}{name:>10}{ratios}")


def run_cpu() -> dict[str, Any]:
    """`chunked` and the token loop on one thread, and how far apart their results are."""
    torch.set_num_threads(1)
    shape = Shape(2, 256, 2, 2, 32, torch.float32)
    (result,) = self_test("cpu", [shape], backend="chunked")
    print(result)
    inputs, weights = make_inputs(shape, torch.device("cpu"), 0)
    leaves = [t.requires_grad_() for t in inputs]
    times: dict[str, float] = {}
    for name in ("chunked", "reference"):
        series = []
        for _ in range(5):
            start = time.process_time()
            torch.autograd.grad(gated_delta_rule(*leaves, backend=name), leaves, weights)
            series.append(time.process_time() - start)
        times[name] = statistics.median(series)
    print(f"CPU, 2x256x2x32, forward and backward: { ({k: f'{1e3 * v:.1f} ms' for k, v in times.items()}) }")
    return {"cpu": times, "ok": result.ok, "errors": result.errors}


def versions() -> dict[str, str]:
    """Of what takes part, and the GPU's name."""
    found = {"torch": torch.__version__, "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none"}
    for name in ("triton", "fla-core", "flash-linear-attention"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write the results, hardware and versions there")
    parser.add_argument("--replays", type=int, default=50)
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="only the first so many shapes")
    arguments = parser.parse_args()
    report: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "versions": versions()}
    if torch.cuda.is_available():
        report |= run_gpu(SHAPES[: arguments.shapes], arguments.replays)
    else:
        print("no GPU run")
        report |= run_cpu()
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(report, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
