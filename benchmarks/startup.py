"""How long it takes to begin: what imports cost beyond torch's, and `sleeptrain train` until its first step is done.

Imports are CPU time of whole processes, started in turn; the first step is counted from the start of the process to the
moment when the first row of metrics.jsonl was written.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from figures import Figure, interleaved, part

IMPORTS = {
    "torch": "import torch",
    "sleeptrain": "import torch, sleeptrain",
    "training": "import torch, sleeptrain.recipe.recipe, sleeptrain.train.loop",
}


def spent() -> float:
    """CPU seconds of all processes that this one has started and seen end."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def cpu_seconds(code: str) -> float:
    """CPU time of a Python process that runs `code`."""
    before = spent()
    subprocess.run([sys.executable, "-c", code], check=True)
    return spent() - before


def imports(rounds: int) -> list[Figure]:
    """Median of the rounds' differences to a process that imports torch alone."""
    runs = {name: partial(cpu_seconds, code) for name, code in IMPORTS.items()}
    interleaved(runs, 1)  # files into the page cache
    times = interleaved(runs, rounds)

    def beyond(name: str) -> float:
        return statistics.median(a - b for a, b in zip(times[name], times["torch"], strict=True))

    detail = {"seconds": {name: statistics.median(series) for name, series in times.items()}, "rounds": rounds}
    return [
        Figure("import sleeptrain, beyond torch", beyond("sleeptrain"), "s", at_most=0.3, detail=detail),
        Figure("import recipe and training loop, beyond torch", beyond("training"), "s", detail=detail),
    ]


def command(*words: str) -> None:
    """Run a command of sleeptrain; its output is printed if it fails."""
    made = subprocess.run([sys.executable, "-m", "sleeptrain", *words], capture_output=True, text=True, check=False)
    if made.returncode:
        raise SystemExit(f"sleeptrain {' '.join(words)}:\n{made.stdout}{made.stderr}")


def first_step(folder: Path, name: str) -> tuple[float, float]:
    """Seconds from starting `sleeptrain train rule110-tiny` to its first row of metrics, and CPU seconds until its end."""
    run = folder / name
    start, before = time.time(), spent()
    data = f"data.sources=[{{path: {folder / 'data'}}}]"
    command("train", "rule110-tiny", data, f"run_dir={run}", "train.steps=1")
    return os.stat(run / "metrics.jsonl").st_mtime - start, spent() - before


def figures(quick: bool) -> list[Figure]:
    """Imports, then the first step."""
    found = imports(1 if quick else 9)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command("data", "build", "rule110-tiny", "--out", str(folder / "data"), "train=256", "test=64")
        runs = [first_step(folder, f"run-{i}") for i in range(1 if quick else 7)]
    wall, cpu = zip(*runs, strict=True)
    detail = {"seconds": wall, "cpu_seconds_with_checkpoint": cpu}
    # What a busy machine adds to wall time is only ever more.
    found.append(Figure("sleeptrain train, start to first step (fastest run)", min(wall), "s", detail=detail))
    return found


if __name__ == "__main__":
    part(figures, __doc__, ["torch", "deepspeed"])
