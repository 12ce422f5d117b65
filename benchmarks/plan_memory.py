"""Does a step take the memory that `sleeptrain plan` says?

    python -m benchmarks.plan_memory [--processes 1 2 3 4] [--out benchmarks/results/plan_memory.json]

Each case of the grid of tests/plan/step_memory.py trains a small model in real processes over gloo: layouts of one to four processes with
ZeRO 1 to 3, fp32 and bf16, blocks compiled and not; on two processes with all recompute policies, elsewhere with one of them in turn.
Measured are the bytes that live between steps and the peak of the second step, of every process, in storages of tensors: exact, and
independent of timing. A ratio is measured over planned; the status is 1 where one is more than 5 % off.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sleeptrain.run.environment import environment
from tests.distributed import run
from tests.plan.step_memory import grid, step_bytes_by_case

ALLOWED = 0.05


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; 0 where every ratio is within 5 % of 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 3, 4], metavar="N", choices=[1, 2, 3, 4])
    parser.add_argument("--out", type=Path, metavar="FILE", help="write ratios and versions there as JSON")
    arguments = parser.parse_args(argv)
    found: dict[str, dict[str, Any]] = {}
    for world in arguments.processes:
        by_rank = run(step_bytes_by_case, world, {case: case.split() for case in grid(world)}, timeout=3600)
        for case in by_rank[0]:
            measured, planned = zip(*(cases[case] for cases in by_rank), strict=True)
            ratios = [round(m / p, 3) for m, p in zip(measured, planned, strict=True)]
            found.setdefault(str(world), {})[case] = {"measured": measured, "planned": planned, "ratio": ratios}
            mark = "" if all(abs(ratio - 1) <= ALLOWED for ratio in ratios) else "  OFF"
            print(f"{case:120}{' '.join(f'{ratio:.3f}' for ratio in ratios)}{mark}", flush=True)
    every = [ratio for cases in found.values() for case in cases.values() for ratio in case["ratio"]]
    body = {
        "command": "python -m benchmarks.plan_memory", "environment": environment(), "cases": sum(map(len, found.values())),
        "least": min(every), "most": max(every), "bytes by processes": found,
    }  # fmt: skip
    print(f"{body['cases']} cases: {min(every):.3f} to {max(every):.3f}")
    if arguments.out:
        lists = re.compile(r"\[\s+([^][]+?)\s+\]")
        text = lists.sub(lambda m: f"[{' '.join(m[1].split())}]", json.dumps(body, indent=1))
        arguments.out.write_text(text + "\n")
    return 0 if all(abs(ratio - 1) <= ALLOWED for ratio in every) else 1


if __name__ == "__main__":
    raise SystemExit(main())
