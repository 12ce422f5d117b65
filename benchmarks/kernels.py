"""Benchmark of the kernels on a GPU: device ceilings, self-test, then times and memory beside flash-linear-attention.

    benchmarks/gpu.sh verify OUT ; benchmarks/gpu.sh measure OUT          two commands, each below ten minutes
    python benchmarks/kernels.py --json benchmarks/results/kernels.json   the second command by itself
    python benchmarks/kernels.py --dry                                    smoke test on a CPU in Triton's interpreter

Measured per shape, for forward and for forward with backward (gradients of all six inputs): the median time of CUDA graph
replays that cycle through several input sets, together larger than the L2 cache; the share of that time that the device's
ceilings allow for; wall-clock time of consecutive eager calls; memory. Then the same for a whole layer without its
projections: convolution, norms, gates, rule, gated norm. Without a GPU it prints "no GPU run" and compares `chunked` with the
token loop on the CPU in seconds.

flash-linear-attention is included if `fla` can be imported; set FLA_DISABLE_BACKEND_DISPATCH=1 to measure its Triton path.
Under Triton 3.4 to 3.7.0 on Hopper its backward raises an error, which is reported; --lift-guard runs it at d = 128, where
its gradients have been correct, under the name "fla, guard lifted". Errors are reported beside times. Failures are reported
and the benchmark continues; the exit status is 1 unless the Triton kernels are correct at every shape.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from machines import Dry, Gpu
from rule_timing import Machine, contenders, input_sets, layer, measure, roofline

from sleep_kernels import gated_delta_rule
from sleep_kernels.comparison import Rule, Shape, make_rule_inputs, rule_errors
from sleep_kernels.self_test import self_test

# batch, time, key heads, value heads, d
SHAPES = [(8, 512, 16, 16, 128), (8, 1024, 16, 16, 128), (4, 2048, 16, 16, 128), (8, 4096, 16, 16, 128)]
SHAPES += [(1, 4096, 32, 32, 128), (8, 2048, 16, 16, 64), (8, 1024, 16, 32, 128)]
TINY = [(1, 33, 1, 2, 16)]  # one chunk, to see that everything runs under the interpreter


def attempt(call: Callable[[], dict[str, Any]], machine: Machine) -> dict[str, Any]:
    """The result of `call`, or {"failed": message}, also if the device fails only when it is synchronised."""
    found: dict[str, Any] = {}
    failed = []
    for step in (lambda: found.update(call()), machine.settle):
        try:
            step()
        except Exception as error:
            failed.append(f"{type(error).__name__}: {error}"[:300])
    return {"failed": "; ".join(dict.fromkeys(failed))} if failed else found


def row_of(shape: Shape, machine: Machine, lift_guard: bool, ceilings: dict[str, float]) -> dict[str, Any]:
    """All results of one shape, printed as they are measured."""
    name = "x".join(map(str, (shape.batch, shape.time, shape.key_heads, shape.value_heads, shape.d)))
    least = roofline(shape, ceilings)
    row: dict[str, Any] = {"shape": name, "roofline_s": least, "contenders": {}, "layer": {}}
    row["self_test"] = attempt(partial(verdict, shape, machine), machine)
    print(name, "self-test", json.dumps(row["self_test"]), flush=True)

    def contend() -> dict[str, Any]:
        for who, found in rules(shape, machine, lift_guard, least):
            row["contenders"][who] = found
            print(name, who, json.dumps(found), flush=True)
        return {}

    row |= attempt(contend, machine)  # "failed" if the inputs could not be created
    for backend in ("triton", "chunked"):
        row["layer"][backend] = attempt(partial(layer, shape, machine, backend), machine)
        print(name, "layer", backend, json.dumps(row["layer"][backend]), flush=True)
    return row


def verdict(shape: Shape, machine: Machine) -> dict[str, Any]:
    """Self-test of the Triton kernels at this shape."""
    (report,) = self_test(machine.device, [shape])
    return {"ok": report.ok, "report": str(report)}


def rules(
    shape: Shape, machine: Machine, lift_guard: bool, least: tuple[float, float]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Errors and measurements of the rule for every contender, on the same inputs."""
    sets = input_sets(*make_rule_inputs(shape, machine.device, 0), machine)
    fresh = make_rule_inputs(shape.reduced(), machine.device, seed=time.time_ns() % 2**31)

    def one(rule: Rule) -> dict[str, Any]:
        found = {"errors": rule_errors(rule, *fresh), **measure(rule, sets, machine)}
        return found | {"forward_share": least[0] / found["forward_s"], "both_share": least[1] / found["both_s"]}

    for who, rule in contenders(lift_guard and shape.d == 128).items():
        yield who, attempt(partial(one, rule), machine)


def table(rows: list[dict[str, Any]]) -> str:
    """Our share of the roofline, and times and memory of the other contenders relative to ours."""
    keys = ("forward_s", "both_s", "eager_both_s", "peak_bytes")
    lines = [f"{'shape':22}{'':24}{'forward':>10}{'both':>10}{'eager':>10}{'memory':>10}"]
    for row in rows:
        groups = {"": row["contenders"], "layer, ": row["layer"]}
        ours = row["contenders"].get("triton")
        if ours and "failed" not in ours:
            shares = "".join(f"{ours[key]:10.2f}" for key in ("forward_share", "both_share"))
            lines.append(f"{row['shape']:22}{'share of the roofline':24}{shares}")
        for prefix, found in groups.items():
            for who, other in found.items():
                if who != "triton" and "failed" not in found["triton"] and "failed" not in other:
                    ratios = "".join(f"{other[key] / found['triton'][key]:10.2f}" for key in keys)
                    lines.append(f"{row['shape']:22}{prefix + who + ' / triton':24}{ratios}")
    return "\n".join(lines)


def run(
    machine: Machine, shapes: list[tuple[int, ...]], lift_guard: bool, report: dict[str, Any], out: Any, until: float = math.inf
) -> bool:  # fmt: skip
    """Measure all shapes and write the report to `out` after each; whether the Triton kernels are correct at all of them.

    No shape is begun `until` seconds after the first one.
    """
    began = time.monotonic()
    report |= {"ceilings": machine.ceilings(), "rows": []}
    print(json.dumps(report["ceilings"]))
    for sizes in shapes:
        if time.monotonic() - began > until:
            report["left out"] = ["x".join(map(str, each)) for each in shapes[len(report["rows"]) :]]
            print("left out:", *report["left out"])
            break
        report["rows"].append(row_of(Shape(*sizes), machine, lift_guard, report["ceilings"]))
        if out:
            out.write_text(json.dumps(report, indent=1))
    if out:
        out.write_text(json.dumps(report, indent=1))
    print(f"\n{table(report['rows'])}")
    return all(row["self_test"].get("ok", False) for row in report["rows"])


def run_cpu() -> dict[str, Any]:
    """CPU times of `chunked` and the token loop on one thread, and the self-test of `chunked`."""
    torch.set_num_threads(1)
    shape = Shape(2, 256, 2, 2, 32, torch.float32)
    (report,) = self_test("cpu", [shape], backend="chunked")
    print(report)
    inputs, weights = make_rule_inputs(shape, torch.device("cpu"), 0)
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
    return {"cpu": times, "ok": report.ok, "errors": report.errors}


def versions() -> dict[str, str]:
    """Versions of the packages involved, and the GPU's name."""
    found = {"torch": torch.__version__, "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none"}
    for name in ("triton", "fla-core", "flash-linear-attention"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write results, hardware and versions to FILE")
    parser.add_argument("--replays", type=int, default=50)
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="number of shapes to measure")
    parser.add_argument("--until", type=float, default=math.inf, help="begin no shape after so many seconds")
    parser.add_argument(
        "--lift-guard", action="store_true", help="run fla's backward at d = 128 under any Triton version"
    )
    parser.add_argument("--dry", action="store_true", help="smoke test: one tiny shape in Triton's interpreter")
    arguments = parser.parse_args()
    report: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "versions": versions()}
    correct = True
    if arguments.dry:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is first imported
        correct = run(Dry(), TINY, arguments.lift_guard, report, arguments.json)
    elif torch.cuda.is_available():
        shapes = SHAPES[: arguments.shapes]
        correct = run(Gpu(arguments.replays), shapes, arguments.lift_guard, report, arguments.json, arguments.until)
    else:
        print("no GPU run")
        report |= run_cpu()
        if arguments.json:
            arguments.json.write_text(json.dumps(report, indent=1))
    return 0 if correct else 1


if __name__ == "__main__":
    sys.exit(main())
