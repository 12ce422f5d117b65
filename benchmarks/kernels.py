"""The kernels on a GPU: ceilings, correctness, then times beside flash-linear-attention's, the ratios last.

    benchmarks/gpu.sh verify OUT ; benchmarks/gpu.sh measure OUT          two commands, each below ten minutes
    python benchmarks/kernels.py --json benchmarks/results/kernels.json   the second one by itself
    python benchmarks/kernels.py --dry                                    does it run? on a CPU, in Triton's interpreter

Per shape: CUDA graphs of a forward and of a forward with backward (gradients of all six inputs), the median over
replays that go round several input sets, together larger than the L2 cache, and what share of the time the device's
ceilings would need; wall-clock time of eager calls back to back; memory. Then the same for a whole layer without its
projections: convolution, norms, gates, rule, gated norm. Without a GPU it says "no GPU run" and compares `chunked` with
the token loop on the CPU, in seconds.

flash-linear-attention takes part where `fla` can be imported; for its Triton path set FLA_DISABLE_BACKEND_DISPATCH=1. Under
Triton 3.4 to 3.7.0 on Hopper its backward raises, and the row says so; --lift-guard lets it run at d = 128, where its
gradients were seen to be right, under a name that says so. Its errors stand beside its times. Whatever fails is written
down and the rest goes on; the exit status is 1 where the Triton kernels are not right at every shape.
"""

from __future__ import annotations

import argparse
import json
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
from torch import Tensor

from sleep_kernels import delta_inputs, gated_delta_rule, gated_rms_norm
from sleep_kernels.comparison import Rule, Shape, errors, make_inputs, make_layer
from sleep_kernels.self_test import self_test

Machine = Gpu | Dry
# batch, time, key heads, value heads, d
SHAPES = [(8, 512, 16, 16, 128), (8, 1024, 16, 16, 128), (4, 2048, 16, 16, 128), (8, 4096, 16, 16, 128)]
SHAPES += [(1, 4096, 32, 32, 128), (8, 2048, 16, 16, 64), (8, 1024, 16, 32, 128)]
TINY = [(1, 65, 1, 2, 16)]
LIFTED = "fla, guard lifted"


def contenders(lift_guard: bool) -> dict[str, Rule]:
    """Name -> function of q, k, v, g, beta and the initial state."""
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

        chunk_o.TRITON_ABOVE_3_7_1 = True  # what its check asks
    return rules | {LIFTED if lift_guard else "fla": fla}


def roofline(shape: Shape, ceilings: dict[str, float]) -> tuple[float, float]:
    """Seconds that a forward, and a forward with backward, need at least: arithmetic at the matmul rate, or every input
    and output once at the copy's. Chunks of 64; backward computes the states again."""
    chunk, d, tokens = 64, shape.d, shape.batch * shape.time
    flops = (6 * d * d + 8 * chunk * d, 16 * d * d + 20 * chunk * d + 4 * chunk * chunk)  # of a token and value head
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
    """Seconds and bytes of one contender on the input sets, each inputs and gradients of the outputs."""

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
    """Copies of inputs that want gradients, and of gradients of outputs."""
    count = machine.sets(sum(t.nbytes for t in tensors))
    return [
        ([t.detach().clone().requires_grad_() for t in tensors], [w.clone() for w in weights]) for _ in range(count)
    ]


def layer(shape: Shape, machine: Machine, backend: str) -> dict[str, Any]:
    """As `measure`, for everything of a layer but its projections."""
    eps, keys = 1e-6, shape.key_heads

    def rule(*tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        *inputs, gate, norm, state = tensors
        q, k, v, g, beta, tail = delta_inputs(*inputs, key_heads=keys, backend=backend)
        o, state = gated_delta_rule(q, k, v, g, beta, state, backend=backend)
        return gated_rms_norm(o, gate, norm, eps, backend=backend), state, tail

    sizes = (shape.batch, shape.value_heads, shape.d, shape.d)
    tensors = [*make_layer(shape, machine.device, 0), torch.zeros(sizes, device=machine.device)]
    weights = [tensors[11], tensors[13], tensors[10]]  # of the outputs' shapes: gate, state, tail
    return measure(rule, input_sets(tensors, weights, machine), machine)


def attempt(call: Callable[[], dict[str, Any]], machine: Machine) -> dict[str, Any]:
    """What it returns; that something cannot run here is a result too, also where the device is lost from then on."""
    found: dict[str, Any] = {}
    failed = []
    for step in (lambda: found.update(call()), machine.settle):
        try:
            step()
        except Exception as error:
            failed.append(f"{type(error).__name__}: {error}"[:300])
    return {"failed": "; ".join(dict.fromkeys(failed))} if failed else found


def row_of(shape: Shape, machine: Machine, lift_guard: bool, ceilings: dict[str, float]) -> dict[str, Any]:
    """Everything about one shape; prints as it goes."""
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

    row |= attempt(contend, machine)  # "failed" where the inputs could not be made
    for backend in ("triton", "chunked"):
        row["layer"][backend] = attempt(partial(layer, shape, machine, backend), machine)
        print(name, "layer", backend, json.dumps(row["layer"][backend]), flush=True)
    return row


def verdict(shape: Shape, machine: Machine) -> dict[str, Any]:
    """Whether the Triton kernels are right at this shape."""
    (result,) = self_test(machine.device, [shape])
    return {"ok": result.ok, "said": str(result)}


def rules(
    shape: Shape, machine: Machine, lift_guard: bool, least: tuple[float, float]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """What every contender makes of the rule, on the same inputs."""
    sets = input_sets(*make_inputs(shape, machine.device, 0), machine)
    fresh = make_inputs(shape.reduced(), machine.device, seed=time.time_ns() % 2**31)

    def one(rule: Rule) -> dict[str, Any]:
        found = {"errors": errors(rule, *fresh), **measure(rule, sets, machine)}
        return found | {"forward_share": least[0] / found["forward_s"], "both_share": least[1] / found["both_s"]}

    for who, rule in contenders(lift_guard and shape.d == 128).items():
        yield who, attempt(partial(one, rule), machine)


def table(rows: list[dict[str, Any]]) -> str:
    """Our share of the roofline, and how many times our time and memory the others take."""
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


def run(machine: Machine, shapes: list[tuple[int, ...]], lift_guard: bool, report: dict[str, Any], out: Any) -> bool:
    """All of it; what there is by then is written after every shape. Whether the Triton kernels were right at all."""
    report |= {"ceilings": machine.ceilings(), "rows": []}
    print(json.dumps(report["ceilings"]))
    for sizes in shapes:
        report["rows"].append(row_of(Shape(*sizes), machine, lift_guard, report["ceilings"]))
        if out:
            out.write_text(json.dumps(report, indent=1))
    print(f"\n{table(report['rows'])}")
    return all(row["self_test"].get("ok", False) for row in report["rows"])


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
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results, hardware and versions there")
    parser.add_argument("--replays", type=int, default=50)
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="only the first so many shapes")
    parser.add_argument("--lift-guard", action="store_true", help="run fla's backward at d = 128 whatever Triton")
    parser.add_argument("--dry", action="store_true", help="one tiny shape in Triton's interpreter: does it run?")
    arguments = parser.parse_args()
    report: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "versions": versions()}
    right = True
    if arguments.dry:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is first imported
        right = run(Dry(), TINY, arguments.lift_guard, report, arguments.json)
    elif torch.cuda.is_available():
        shapes = SHAPES[: arguments.shapes]
        right = run(Gpu(arguments.graph_cache), shapes, arguments.lift_guard, report, arguments.json)
    else:
        print("no GPU run")
        report |= run_cpu()
        if arguments.json:
            arguments.json.write_text(json.dumps(report, indent=1))
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
