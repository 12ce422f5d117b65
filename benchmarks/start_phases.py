"""The phases of a start: the weights of `hybrid-1b` drawn by one thread and by several, and what `sleeptrain train` says of each phase.

    python -m benchmarks.start_phases [--out benchmarks/results/startup_phases.json]

Weights are drawn in float32 in this process, in turn by each number of threads; all rounds are given. Phases are those that
`sleeptrain train rule110-tiny` prints before and after its first step, in the fastest of three processes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sleeptrain.model import init
from sleeptrain.model.language import LanguageModel
from sleeptrain.recipe import load_recipe
from sleeptrain.run.environment import environment

PHASE = re.compile(r"^  (?P<what>.+), (?P<seconds>\d+\.\d) s$", re.MULTILINE)
BEGAN = "from the start of the process"
WORDS = 32768


def draw(threads: list[int], rounds: int) -> dict[str, Any]:
    """Wall seconds of drawing all weights of `hybrid-1b`, by number of threads; the sums show that the values are the same."""
    recipe = load_recipe("hybrid-1b", [f"model.vocab={WORDS}"]).value
    with torch.device("meta"):
        model = LanguageModel(recipe.model, gated=recipe.sleep.gated)
    model.to_empty(device="cpu")
    for weight in model.parameters():
        weight.detach().zero_()  # pages of the system
    seconds: dict[str, list[float]] = {str(count): [] for count in threads}
    sums = set()
    for count in threads * rounds:
        init.drawing_threads = lambda count=count: count  # type: ignore[misc]
        began = time.perf_counter()
        init.initialise(model, 0, 1024)
        seconds[str(count)].append(round(time.perf_counter() - began, 2))
        sums.add(sum(float(weight.sum(dtype=torch.float64)) for weight in model.parameters()))
    return {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "seconds": seconds,
        "equal sums": len(sums) == 1,
    }


def phases(folder: Path, name: str) -> dict[str, float]:
    """Seconds of every phase of one training of one step, and from the start of the process to the first step."""
    words = [f"data.sources=[{{path: {folder / 'data'}}}]", f"run_dir={folder / name}", "train.steps=1"]
    ran = sleeptrain("train", "rule110-tiny", *words)
    found = {" ".join(match["what"].split()): float(match["seconds"]) for match in PHASE.finditer(ran)}
    (last,) = (what for what in found if what.startswith("first step"))
    found["first step"] = found.pop(last)
    return found | {BEGAN: float(last.split()[2])}


def sleeptrain(*words: str) -> str:
    """What a command prints to stderr."""
    command = [sys.executable, "-m", "sleeptrain", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def in_training() -> dict[str, float]:
    """`phases` of the fastest of three processes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sleeptrain("data", "build", "rule110-tiny", "--out", str(folder / "data"), "train=256", "test=64")
        return min((phases(folder, f"run-{place}") for place in range(3)), key=lambda run: run[BEGAN])


PARTS: dict[str, Callable[[], Any]] = {"weights of hybrid-1b": lambda: draw([1, 2], 2), "rule110-tiny": in_training}


def main() -> None:
    """Print the results of some parts, or write them with the versions beside those of the other parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the results there as JSON")
    arguments = parser.parse_args()
    out: Path | None = arguments.out
    body = json.loads(out.read_text()) if out and out.exists() else {"command": "python -m benchmarks.start_phases"}
    for part in arguments.parts:
        load = os.getloadavg()[0]
        body[part] = {"load_average": round(load, 1), "environment": environment(), "found": PARTS[part]()}
    text = json.dumps(body, indent=1)
    if out:
        out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
