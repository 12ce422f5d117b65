"""Trains deep stacks that sleep on the sources of Python's standard library, with and without scaled branches.

For 24 and 12 blocks (`text-deep` and half of it): N = 1 and N = 2, with `model.residual_scale` as in `text-deep` and with 1, and
N = 2 with `sleep.loop.feedback: gated` besides.
Runs with the same seed read the same rows in the same order and have one `deltanet.horizon`, so that losses are compared in
pairs; intervals are over seeds (95 %, Student's t). Finished runs are kept: the same command continues.

    python benchmarks/depth_training.py --runs runs/depth --json benchmarks/results/depth_training.json --plot docs/depth-training.svg
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gated_delta_cpu import cpu_name

from sleeptrain.evaluate.intervals import mean_interval
from sleeptrain.run.environment import environment
from sleeptrain.train.growth import residual_scale
from sleeptrain.train.log import read_metrics

HORIZON = 1024
"""`deltanet.horizon` of all runs: twice the tokens that two passes over 8 windows of 32 write."""


@dataclass(frozen=True, order=True)
class Run:
    """One training."""

    seed: int
    blocks: int
    scaled: bool
    passes: int
    feedback: str = "raw"

    @property
    def kind(self) -> str:
        """What distinguishes it from other runs with as many blocks and passes."""
        return ("scaled" if self.scaled else "unscaled") + ("" if self.feedback == "raw" else f", {self.feedback}")

    @property
    def case(self) -> str:
        """What distinguishes it from other runs with as many blocks."""
        return f"{self.kind}, N = {self.passes}"

    def name(self) -> str:
        """Its folder."""
        return f"{self.blocks}-{self.kind.replace(', ', '-')}-n{self.passes}-seed{self.seed}"


CASES = ((True, 1, "raw"), (True, 2, "raw"), (True, 2, "gated"), (False, 1, "raw"), (False, 2, "raw"))
"""Scaled, passes and feedback, in the order of the table. The first is what the others are compared with."""


def sleeptrain(*words: str) -> str:
    """Run a command on one thread and return what it prints; its errors are shown if it fails."""
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "sleeptrain", *words]
    made = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if made.returncode:
        raise SystemExit(f"sleeptrain {' '.join(words)}:\n{made.stdout}{made.stderr}")
    return made.stdout


def train(run: Run, folder: Path, steps: int) -> dict[str, Any]:
    """Train, or take a finished run; its losses, gradient norms and growth by step, and its loss on held-out text."""
    scale = residual_scale(run.blocks, 2) if run.scaled else 1.0
    target, result = folder / run.name(), folder / f"{run.name()}.json"
    if not result.exists():
        sleeptrain(
            "train", "text-deep", f"data.sources=[{{path: {folder / 'text'}}}]", f"run_dir={target}",
            f"train.seed={run.seed}", f"train.steps={steps}", f"sleep.passes={run.passes}", f"model.residual_scale={scale:.4f}",
            f"sleep.loop.feedback={run.feedback}", f"model.layers=(GGGA)x{run.blocks // 4}", f"model.deltanet.horizon={HORIZON}", "checkpoint.every=100",
        )  # fmt: skip
        held_out = json.loads(sleeptrain("eval", str(target), "--samples", "128", "--json"))
        rows = read_metrics(target / "metrics.jsonl")
        keys = ("loss", "grad_norm", "state_gradient_growth")
        result.write_text(
            json.dumps({"run": asdict(run), "eval": held_out, **{key: [row[key] for row in rows] for key in keys}})
        )
        print(f"{run.name()}: {final(json.loads(result.read_text())):.4f}", file=sys.stderr, flush=True)
    body: dict[str, Any] = json.loads(result.read_text())
    return body


def final(body: dict[str, Any]) -> float:
    """The loss on held-out text at the end, in nats a byte."""
    return float(body["eval"]["runs"][0]["measured"][0]["loss"])


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of the 95 % interval over seeds."""
    bounds = mean_interval(values)
    assert bounds is not None, "one seed has no interval"
    return statistics.mean(values), (bounds[1] - bounds[0]) / 2


def report(found: dict[Run, dict[str, Any]], seeds: Sequence[int], blocks: Sequence[int]) -> Iterator[str]:
    """Markdown: final losses and paired differences to N = 1, by number of blocks."""
    yield "| blocks | | held-out loss | minus scaled N = 1 | gradient norm, first step | growth a window, first step | last step |"
    yield "|---|---|---|---|---|---|---|"
    for depth in blocks:
        plain = [found[Run(seed, depth, *CASES[0])] for seed in seeds]
        for number, case in enumerate(CASES):
            runs = [found[Run(seed, depth, *case)] for seed in seeds]
            mean, half = interval([final(run) for run in runs])
            change = interval([final(run) - final(base) for run, base in zip(runs, plain, strict=True)])
            difference = f"{change[0]:+.3f} ± {change[1]:.3f}" if number else ""
            norm = statistics.median(run["grad_norm"][0] for run in runs)
            growths = [statistics.median(run["state_gradient_growth"][at] for run in runs) for at in (0, -1)]
            name = Run(0, depth, *case).case
            yield (
                f"| {depth} | {name} | {mean:.3f} ± {half:.3f} | {difference} | {norm:.2g} | {growths[0]:.2f} | {growths[1]:.2f} |"
            )


def plot(found: dict[Run, dict[str, Any]], blocks: Sequence[int], path: Path) -> None:
    """Training loss by step, means of 10 steps, one line for every run."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(blocks), figsize=(5 * len(blocks), 4), sharey=True, squeeze=False)
    colours = {case: f"C{number}" for number, case in enumerate(sorted({run.case for run in found}))}
    for depth, axis in zip(blocks, axes[0], strict=True):
        for run, body in sorted(found.items()):
            if run.blocks == depth:
                means = [statistics.mean(body["loss"][i : i + 10]) for i in range(0, len(body["loss"]) - 9, 10)]
                label = run.case if run.seed == min(other.seed for other in found) else None
                axis.plot(range(10, 10 * len(means) + 1, 10), means, color=colours[run.case], alpha=0.8, label=label)
        axis.set(title=f"{depth} blocks, 8 windows of 32 bytes", xlabel="step")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("training loss, nats a byte")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Build the data, train, print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", metavar="FOLDER", type=Path, required=True, help="where data and runs are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--blocks", type=int, nargs="+", default=[24, 12])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at the same time")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all curves and versions there")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the losses")
    arguments = parser.parse_args()
    folder = arguments.runs
    if not (folder / "text" / "manifest.json").exists():
        library = Path(os.__file__).parent
        sources = folder / "sources"
        sources.mkdir(parents=True, exist_ok=True)
        for path in sorted(library.glob("*.py")):
            (sources / path.name).write_bytes(path.read_bytes())
        sleeptrain(
            "data",
            "build",
            "text",
            "--out",
            str(folder / "text"),
            f"paths=[{sources}]",
        )
    runs = [
        Run(seed, blocks, *case) for blocks in arguments.blocks for seed in arguments.seeds for case in CASES
    ]  # fmt: skip
    with ThreadPoolExecutor(arguments.jobs) as pool:
        found = dict(zip(runs, pool.map(lambda run: train(run, folder, arguments.steps), runs), strict=True))
    print("\n".join(report(found, arguments.seeds, arguments.blocks)))
    if arguments.json:
        body = {"command": " ".join(sys.argv), "hardware": {"cpu": cpu_name(), "threads": 1}, **environment()}
        arguments.json.write_text(json.dumps(body | {"runs": list(found.values())}) + "\n")
    if arguments.plot:
        plot(found, arguments.blocks, arguments.plot)


if __name__ == "__main__":
    main()
