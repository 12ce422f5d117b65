"""Every figure that one CPU thread can show, with its target beside it.

    .venv/bin/python benchmarks/cpu.py
    .venv/bin/python benchmarks/cpu.py --only steps --json steps.json

Parts run one after the other, each in a process of its own with one thread. Ratios are medians over rounds in which all
contenders run in turn, of CPU time where a process can count it; so a machine that others use as well gives the same
figures, only slower. Without --only and --json the results go to benchmarks/results/cpu.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from figures import table
from gated_delta_cpu import cpu_name

from sleeptrain.run.environment import environment

HERE = Path(__file__).resolve().parent
ENGINES = HERE.parent / ".venv-engines" / "bin" / "python"
PARTS = (
    "operators", "loss", "steps", "recompute", "startup", "threads", "checkpoint", "packing", "generators", "text_build",
    "inference",
)  # fmt: skip
"""The scripts beside this one."""
MISSING = (
    "no .venv-engines: without transformers 5 the chunked form is compared with the token loop alone; "
    "`make .venv-engines/installed` sets it up (so do `make test` and `make bench`)"
)


def run_part(name: str, quick: bool) -> dict[str, Any]:
    """Figures and versions of one part. Operators are measured beside transformers 5, where that is installed."""
    python = sys.executable
    if name == "operators" and not quick:
        if ENGINES.exists():
            python = str(ENGINES)
        else:
            print(MISSING, file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        words = [python, str(HERE / f"{name}.py"), "--json", str(out), *(["--quick"] if quick else [])]
        environ = os.environ | {"OMP_NUM_THREADS": "1"}
        made = subprocess.run(
            words, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if made.returncode:
            raise SystemExit(f"{' '.join(words)}:\n{made.stdout}")
        body: dict[str, Any] = json.loads(out.read_text())
    return body


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table with targets beside the figures, write the results; 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--json", metavar="FILE", type=Path, help="where results go")
    parser.add_argument(
        "--quick", action="store_true", help="few rounds at small sizes: does it run? Writes to --json only"
    )
    arguments = parser.parse_args(argv)
    parts = {}
    for name in [arguments.only] if arguments.only else PARTS:
        parts[name] = run_part(name, arguments.quick)
        print(table(parts[name]["figures"]), flush=True)
    body = {
        "command": " ".join(
            ["OMP_NUM_THREADS=1 .venv/bin/python benchmarks/cpu.py", *(sys.argv[1:] if argv is None else argv)]
        ),
        "hardware": {"cpu": cpu_name(), "cores": os.cpu_count(), "threads": 1},
        "environment": environment(),
        "parts": parts,
    }
    whole = not arguments.only and not arguments.quick
    target = arguments.json or (HERE / "results" / "cpu.json" if whole else None)
    if target:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(body, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
