"""Times of the gated delta rule on a GPU with other launch parameters of its kernels, in bf16 at d = 128.

One kernel's parameters are changed at a time, all others are those of the table (kernels/sleep_kernels/verified.json). The candidates were
compiled for sm_90 without a GPU: they spill few registers or none and their shared memory fits. Reported per candidate: seconds of forward
and of forward with backward over those with the table's parameters, measured in the same run, the largest share of a bound that an error
against float64 takes, and failures. A table is changed by hand, after `python -m sleep_kernels.self_test`.

    benchmarks/gpu.sh choices OUT
    python benchmarks/launch_choices.py [--json FILE]    the same by itself
    python benchmarks/launch_choices.py --dry            smoke test on a CPU in Triton's interpreter, of one candidate a kernel
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from machines import Dry, Gpu
from rule_timing import Machine, input_sets, measure

from kernels import attempt, versions
from sleep_kernels import gated_delta_rule, triton_gdr
from sleep_kernels.comparison import ErrorReport, Shape, make_rule_inputs, rule_errors
from sleep_kernels.verified import KernelLaunch, LaunchConfig

WINDOW, GROUPED, TINY = Shape(8, 1024, 16, 16, 128), Shape(8, 1024, 16, 32, 128), Shape(1, 33, 1, 2, 16)
CANDIDATES: dict[str, list[tuple[int, ...]]] = {
    "solve_tril": [(1, 1, 32), (1, 1, 64), (1, 1, 128), (2, 1, 32)],
    "chunk_fwd": [(4, 2, 64), (8, 2, 64), (4, 1, 64), (8, 1, 64), (4, 2, 32), (8, 3, 32)],
    "chunk_recompute": [(4, 2, 64), (4, 1, 64), (8, 2, 64), (4, 2, 32)],
    "chunk_bwd_dh": [(4, 2, 64), (8, 2, 64), (8, 1, 64), (4, 2, 32), (8, 2, 32)],
    "chunk_bwd_dqk": [(8, 2, 64, 128), (8, 1, 64, 128), (8, 1, 32, 128), (8, 2, 64, 64), (8, 1, 64, 64)],
    "chunk_bwd_dqk_grouped": [(8, 2, 64, 64), (8, 1, 32, 64), (8, 1, 64, 32), (8, 2, 64, 32)],
}
"""Warps, stages, block and width of `KernelLaunch` by kernel."""


def timed(shape: Shape, machine: Machine, config: LaunchConfig) -> dict[str, Any]:
    """Seconds of forward and of both, and the largest share of a bound that an error takes."""
    with mock.patch.object(triton_gdr, "select_config", lambda *args, **kwargs: config):
        rule = partial(gated_delta_rule, backend="triton")
        found = measure(rule, input_sets(*make_rule_inputs(shape, machine.device, 0), machine), machine)
        errors = rule_errors(rule, *make_rule_inputs(shape.reduced(), machine.device, 1))
    report = ErrorReport(shape, "triton", errors, True, 0.0)
    worst = max(error / report.bound(name) for name, error in errors.items())
    return {"forward_s": found["forward_s"], "both_s": found["both_s"], "error / bound": round(worst, 2)}


def choices(kernel: str, machine: Machine, shape: Shape, config: LaunchConfig) -> list[dict[str, Any]]:
    """The candidates of a kernel, printed as they are measured; the first row has the table's parameters."""
    table = getattr(config, kernel)
    rows: list[dict[str, Any]] = []
    candidates = CANDIDATES[kernel][: 1 if isinstance(machine, Dry) else None]
    for launch in dict.fromkeys([table, *(KernelLaunch(*numbers) for numbers in candidates)]):
        row = asdict(launch) | attempt(partial(timed, shape, machine, replace(config, **{kernel: launch})), machine)
        rows.append(row)
        if "failed" not in row and "failed" not in rows[0]:
            row |= {f"{what}, ratio": round(row[f"{what}_s"] / rows[0][f"{what}_s"], 3) for what in ("forward", "both")}
        print(kernel, json.dumps(row), flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write results, hardware and versions to FILE")
    parser.add_argument("--dry", action="store_true", help="smoke test: a tiny shape in Triton's interpreter")
    arguments = parser.parse_args()
    if not arguments.dry and not torch.cuda.is_available():
        print("no GPU run")
        return 0
    if arguments.dry:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is first imported
    machine: Machine = Dry() if arguments.dry else Gpu(replays=50)
    report: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "versions": versions(), "kernels": {}}
    for kernel in CANDIDATES:
        shape = TINY if arguments.dry else GROUPED if kernel.endswith("grouped") else WINDOW
        inputs, _ = make_rule_inputs(replace(shape, batch=1, time=1), machine.device, 0)
        config = triton_gdr.select_config(inputs[0], inputs[2], verified_only=False)
        if config is None:
            print("the table has no entry for this GPU, Triton and dtype")
            return 1
        report["kernels"][kernel] = choices(kernel, machine, shape, config)
        if arguments.json:
            arguments.json.write_text(json.dumps(report, indent=1))
    return int(any("failed" in rows[0] for rows in report["kernels"].values()))


if __name__ == "__main__":
    sys.exit(main())
