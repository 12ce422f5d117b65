"""Layouts side by side: what a step costs and keeps over processes, stages and recompute policies, and how long stages wait.

    .venv/bin/python benchmarks/parallel.py
    .venv/bin/python benchmarks/parallel.py --processes 4

One model, one global batch. Every layout has processes of its own, with one thread each; all of them wait while one makes a
step, and a round makes one step of all. Times are ratios to one process within a round. NCCL where there are GPUs, else gloo.
Memory is what our own accounting and the operating system (or the GPU's allocator) count, beside what `sleeptrain plan`
says. Idle slots are those of the executed actions, laid out on a clock on which a forward takes one slot and a backward two;
they must be those of the plan. Without --quick results go to benchmarks/results/parallel.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from figures import Figure, interleaved, median_ratio, table
from gated_delta_cpu import cpu_name
from stage_orders import orders
from stage_slots import idle_slots, planned_slots
from teams import Team

from sleeptrain.plan import Plan, make_plan, planned_world, resolve_data
from sleeptrain.recipe import check_batch, load_recipe
from sleeptrain.run.environment import environment
from sleeptrain.train.layout import resolve_layout

HERE = Path(__file__).resolve().parent
POLICIES = ("window", "pass", "block", "none")
"""In the order of what they keep, so that what one leaves behind in the allocator is little to the next."""
MODEL = [
    "model.width=128", "model.layers=GGGA", "model.attention.kv_heads=4", "model.deltanet.key_heads=4",
    "sleep.passes=3", "optim.name=adamw", "train.precision=fp32", "data.sources=[{path: nowhere/text}]",
    "train.batch=12", "train.micro=3",
]  # fmt: skip
"""Over text-small."""
LAYOUTS = {
    2: ({"data": 2}, {"tensor": 2}, {"pipe": 2}),
    4: ({"data": 4}, {"pipe": 4}, {"data": 2, "tensor": 2}, {"data": 2, "pipe": 2}, {"pipe": 2, "tensor": 2}),
}
"""By number of processes."""


def name_of(layout: Mapping[str, int]) -> str:
    """`data=2 x pipe=2`."""
    return " x ".join(f"{axis}={size}" for axis, size in layout.items()) or "one process"


def plans_of(layout: Mapping[str, int], quick: bool) -> dict[str, Plan]:
    """The plan of every policy on a layout."""
    small = [
        "sleep.window=8",
        "sleep.passes=2",
        "model.width=32",
        "model.mlp.hidden=48",
        "train.batch=4",
        "train.micro=1",
    ]
    found = {}
    for policy in POLICIES:
        mesh = [f"mesh.{axis}={size}" for axis, size in layout.items()]
        words = [*MODEL, *(small if quick else []), *mesh, f"train.recompute={policy}"]
        resolved, windows = resolve_data(load_recipe("text-small", words), 2 if quick else 4)
        windows = replace(windows, mask=None)
        batch = check_batch(resolved, planned_world(resolved.value, None))
        found[policy] = make_plan(resolve_layout(resolved.value, windows.windows, batch), windows)
    return found


def compared(layouts: Sequence[Mapping[str, int]], rounds: int, quick: bool) -> list[Figure]:
    """All layouts, and one process, at the same time."""
    found: list[Figure] = []
    with ExitStack() as stack:
        plans = {name_of(layout): plans_of(layout, quick) for layout in ({}, *layouts)}
        teams = {name: stack.enter_context(Team(p["none"].layout.world, orders, p)) for name, p in plans.items()}
        for policy in POLICIES:
            weighed = {name: team.do("measure_memory", policy) for name, team in teams.items()}
            found += [figure for name in teams for figure in _memory(name, policy, plans[name][policy], weighed[name])]
            steps = {name: partial(_seconds, team, policy) for name, team in teams.items()}
            times = interleaved(steps, rounds)
            found += _times(times, policy, {name: plans[name][policy] for name in plans})
            for name, team in teams.items():
                if plans[name][policy].job.mesh.pipe > 1:
                    found += _idle(name, policy, plans[name][policy], team.do("trace", policy))
    return found


def _seconds(team: Team, policy: str) -> float:
    """Of a step: those of the process that took longest."""
    return max(team.do("step", policy))


def _times(times: Mapping[str, Sequence[float]], policy: str, plans: Mapping[str, Plan]) -> list[Figure]:
    one, found = times["one process"], []
    for name, series in times.items():
        detail = {
            "seconds": series, "one_process": one, "processes": plans[name].layout.world, "flops": plans[name].flops,
            "recompute_flops": plans[name].recompute_flops, "uneven": plans[name].balance.waste,
        }  # fmt: skip
        label = "" if name == "one process" else ": over one process"
        value = sorted(series)[len(series) // 2] if name == "one process" else median_ratio(series, one)
        found.append(
            Figure(f"step, recompute {policy}, {name}{label}", value, "s" if not label else "x", detail=detail)
        )
    return found


def _memory(name: str, policy: str, plan: Plan, weighed: Sequence[dict[str, Any]]) -> list[Figure]:
    """What waits for backward, on the process that is farthest from the plan of its stage; the peak of the hungriest one."""
    planned = [sum(plan.memory[process["stage"]].saved.values()) for process in weighed]
    ratio = max((p["kept"] / size for p, size in zip(weighed, planned, strict=True)), key=lambda found: abs(found - 1))
    detail = {
        "by_process": [p["kept"] for p in weighed], "planned": planned,
        "most_by_process": [p["peak"] for p in weighed],
        "planned_most": [sum(plan.memory[p["stage"]].phases[0].kept.values()) for p in weighed],
    }  # fmt: skip
    resident = max(p["resident"] for p in weighed)
    held = [plan.memory[p["stage"]].total for p in weighed]
    return [
        Figure(f"kept, recompute {policy}, {name}: over plan", ratio, "x", detail=detail),
        Figure(
            f"peak, recompute {policy}, {name}: {weighed[0]['by']}", resident / 2**20, "MiB",
            detail={"by_process": [p["resident"] for p in weighed], "planned_without_program": held},
        ),
    ]  # fmt: skip


def _idle(name: str, policy: str, plan: Plan, traces: Sequence[dict[str, Any]]) -> list[Figure]:
    """Waiting of the first pipeline's stages: in slots, against those of the plan; and by the clock."""
    first = {}
    for trace in traces:
        first.setdefault(trace["stage"], trace)
    stages = [first[stage] for stage in sorted(first)]
    executed, planned = idle_slots([stage["events"] for stage in stages]), planned_slots(plan.schedule)
    waited = sum(stage["waited"] for stage in stages) / sum(stage["seconds"] for stage in stages)
    apart = float(sum(abs(a - b) for a, b in zip(executed, planned, strict=True)))
    return [
        Figure(
            f"idle slots, recompute {policy}, {name}: executed less planned", apart, "slots", at_most=0.0,
            detail={"executed": executed, "planned": planned},
        ),
        Figure(
            f"idle, recompute {policy}, {name}: by the clock", waited, "of all time",
            detail={"planned_by_flops": plan.estimate.bubble, "seconds": [stage["seconds"] for stage in stages]},
        ),
    ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write the results; 0, or 1 where stages did not wait as planned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, choices=sorted(LAYOUTS), default=2, help="of the largest layouts")
    parser.add_argument("--json", metavar="FILE", type=Path, help="where results go")
    parser.add_argument(
        "--quick", action="store_true", help="one round at a small size: does it run? Writes to --json only"
    )
    arguments = parser.parse_args(argv)
    if 0 < torch.cuda.device_count() < arguments.processes:
        parser.error(
            f"--processes {arguments.processes}: NCCL wants a GPU for each, and there are {torch.cuda.device_count()}"
        )
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that are started
    load, began, found = os.getloadavg()[0], time.perf_counter(), {}
    for processes in sorted(LAYOUTS):
        if processes <= arguments.processes:
            found[str(processes)] = compared(LAYOUTS[processes], 1 if arguments.quick else 5, arguments.quick)
            print(table([asdict(figure) | {"met": figure.met} for figure in found[str(processes)]]), flush=True)
    body = {
        "command": " ".join(
            ["OMP_NUM_THREADS=1 .venv/bin/python benchmarks/parallel.py", *(sys.argv[1:] if argv is None else argv)]
        ),
        "hardware": {"cpu": cpu_name(), "cores": os.cpu_count(), "threads": 1, "gpus": torch.cuda.device_count()},
        "backend": "nccl" if torch.cuda.is_available() else "gloo",
        "environment": environment(),
        "recipe": {"name": "text-small", "changes": MODEL, "windows": 4},
        "load_average": [load, os.getloadavg()[0]],
        "seconds": round(time.perf_counter() - began, 1),
        "processes": {n: [asdict(figure) | {"met": figure.met} for figure in part] for n, part in found.items()},
    }
    target = arguments.json or (None if arguments.quick else HERE / "results" / "parallel.json")
    if target:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(body, indent=1) + "\n")
    return 0 if all(figure.met is not False for part in found.values() for figure in part) else 1


if __name__ == "__main__":
    raise SystemExit(main())
