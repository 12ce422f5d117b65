"""The gradient at the initial weights of deep stacks that sleep, for every remedy: norms by blocks, passes, windows, length.

One row of random tokens in float32 and full back-propagation; every window is predicted in pass 1 and then sleeps, hard
eviction. The stack is (GGGA)xK of width 256, as `text-deep`. One parameter is varied at a time around 24 blocks, N = 2,
8 windows of 64 tokens; for the scaled stacks also N and windows together. `norm` is that of the gradient of all weights,
`growth` the factor by which that of the fast weights grows from window to window.

    python benchmarks/depth.py --json benchmarks/results/depth.json --plot docs/depth.svg
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from gated_delta_cpu import cpu_name

from sleeptrain.evaluate.line_styles import DASHES, INKS, MARKERS
from sleeptrain.model.config import AttentionConfig, DeltaNetConfig, MlpConfig, Model
from sleeptrain.model.init import initialise
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.model.sleep import run
from sleeptrain.program import Gradient, Loop, Sleep, Window, compile
from sleeptrain.run.environment import environment
from sleeptrain.train.growth import growth

VOCAB = 256
BOUND = 10.0
"""The largest allowed ratio of the gradient norm of N passes to that of N = 1 for the stack of the deep recipes."""


@dataclass(frozen=True)
class Point:
    """A stack and what it reads."""

    blocks: int = 24
    passes: int = 2
    windows: int = 8
    length: int = 64


@dataclass(frozen=True)
class Remedy:
    """Settings of the model and of sleep; the scale of branches is (2 * blocks * passes) ** -exponent."""

    exponent: float = 0.0
    loop: dict[str, Any] = field(default_factory=dict)
    gradient: dict[str, Any] = field(default_factory=dict)
    middle: bool = False
    """Loop the middle quarter of the stack."""
    norm: Literal["pre", "sandwich"] = "pre"


REMEDIES: Mapping[str, Remedy] = {
    "raw": Remedy(),
    "normed": Remedy(loop={"feedback": "normed"}),
    "sandwich norms": Remedy(norm="sandwich"),
    "embeddings": Remedy(loop={"feedback": "embeddings"}),
    "gated": Remedy(loop={"feedback": "gated"}),
    "middle of the stack": Remedy(middle=True),
    "gradient.passes 1": Remedy(gradient={"passes": 1}),
    "gradient.windows 1": Remedy(gradient={"windows": 1}),
    "clip_state 1": Remedy(gradient={"clip_state": 1.0}),
    "scaled, exponent 1/2": Remedy(0.5),
    "scaled, exponent 3/4": Remedy(0.75),
    "scaled, exponent 1": Remedy(1.0),
    "gated, scaled 1/2": Remedy(0.5, loop={"feedback": "gated"}),
    "gated, scaled 3/4": Remedy(0.75, loop={"feedback": "gated"}),
}
SCALED, DEFAULT = "scaled, exponent 3/4", "gated, scaled 3/4"
"""Scaled branches alone, and with the gate, which is what the deep recipes have."""


def points(name: str, quick: bool) -> Iterator[Point]:
    """The points at which a remedy is measured."""
    base = Point(4, 2, 4, 16) if quick else Point()
    axes = {"blocks": (4, 8), "passes": (1, 2)} if quick else AXES
    yield base
    for axis, values in axes.items():
        yield from (replace(base, **{axis: value}) for value in values if value != getattr(base, axis))
    if name in (SCALED, DEFAULT) and not quick:
        varied = [replace(base, passes=n, windows=w) for n in AXES["passes"] for w in AXES["windows"]]
        yield from (point for point in varied if base.passes != point.passes and base.windows != point.windows)


AXES: Mapping[str, tuple[int, ...]] = {
    "blocks": (4, 12, 24, 48), "passes": (1, 2, 4, 8), "windows": (2, 4, 8, 16), "length": (64, 512),
}  # fmt: skip


def measure(point: Point, remedy: Remedy, width: int) -> dict[str, float | None]:
    """The norm of the gradient of the mean loss, and its growth over windows."""
    config = Model(
        width=width, layers=f"(GGGA)x{point.blocks // 4}", vocab=VOCAB, norm=remedy.norm,
        attention=AttentionConfig(heads=width // 64, kv_heads=width // 64, head_dim=64),
        deltanet=DeltaNetConfig(key_heads=width // 64, value_heads=width // 64, head_dim=64),
        mlp=MlpConfig(hidden=width * 5 // 2), residual_scale=(2 * point.blocks * point.passes) ** -remedy.exponent,
    )  # fmt: skip
    middle = (3 * point.blocks // 8, 5 * point.blocks // 8)
    loop = Loop(trigger="every", layers=middle if remedy.middle else "all", **remedy.loop)
    sleep = Sleep(window=point.length, passes=point.passes, loop=loop, gradient=Gradient(**remedy.gradient))
    layout = [Window(i * point.length, (i + 1) * point.length, True) for i in range(point.windows)]
    model = LanguageModel(config, gated=sleep.gated, seed=None)
    initialise(model, seed=0, horizon=2 * point.passes * layout[-1].stop)
    tokens = torch.randint(VOCAB, (1, layout[-1].stop + 1), generator=torch.Generator().manual_seed(1))
    count = layout[-1].stop
    batch = MicroBatch(tokens[:, :-1], tokens[:, 1:], model.zero_state(sleep, 1), loss_scale=1 / count)
    result = run(model, batch, compile(sleep, layout, point.blocks), sleep)
    (result.nll.sum() / count).backward()
    squares = [p.grad.double().square().sum() for p in model.parameters() if p.grad is not None]
    norms = result.adjoint.squares(torch.device("cpu")).sqrt().tolist()
    return {"norm": torch.stack(squares).sum().sqrt().item(), "growth": growth(norms)}


def measure_all(names: Sequence[str], quick: bool, width: int) -> list[dict[str, Any]]:
    """Remedies at all their points, one row each."""
    rows = []
    for name in names:
        remedy = REMEDIES[name]
        for point in points(name, quick):
            began = time.perf_counter()
            rows.append({"remedy": name, **asdict(point), **measure(point, remedy, width)})
            print(f"{name:22} {point} {rows[-1]['norm']:.3g} ({time.perf_counter() - began:.0f} s)", file=sys.stderr)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line for every remedy, one column for every value of an axis, norms in the cells."""
    found = {(row["remedy"], Point(*(row[axis] for axis in AXES))): row["norm"] for row in rows}
    columns = [(axis, value) for axis, values in AXES.items() for value in values]
    lines = [
        "| | " + " | ".join(f"{axis} {value}" for axis, value in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name in REMEDIES:
        norms = [found.get((name, replace(Point(), **{axis: value}))) for axis, value in columns]
        lines.append(f"| {name} | " + " | ".join("" if norm is None else f"{norm:.2g}" for norm in norms) + " |")
    return "\n".join(lines)


def worst_ratio(rows: list[dict[str, Any]]) -> float:
    """The largest norm of the deep recipes' stack at 24 blocks, N <= 8 and W <= 16 over that of N = 1 with as many windows."""
    scaled = [row for row in rows if row["remedy"] == DEFAULT and row["blocks"] == 24 and row["length"] == 64]
    plain = {row["windows"]: row["norm"] for row in scaled if row["passes"] == 1}
    return max(row["norm"] / plain[row["windows"]] for row in scaled)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """The norm against the number of windows, one line for every remedy."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullLocator

    figure, axes = plt.subplots(figsize=(10, 5))
    series = {
        name: sorted(
            (row["windows"], row["norm"])
            for row in rows
            if row["remedy"] == name and (row["blocks"], row["passes"], row["length"]) == (24, 2, 64)
        )
        for name in REMEDIES
    }
    # In the order in which the lines end.
    for number, (name, points) in enumerate(sorted(series.items(), key=lambda item: -item[1][-1][1])):
        ink = number % len(INKS)
        axes.plot(
            *zip(*points, strict=True), label=name, color=INKS[ink], marker=MARKERS[ink], markersize=5,
            linestyle=DASHES[number // len(INKS)], linewidth=2.5 if name in ("raw", DEFAULT) else 1.2,
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="windows", ylabel="norm of the gradient at the initial weights")
    axes.set_xticks(AXES["windows"], [str(value) for value in AXES["windows"]])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_title("24 blocks, two passes, windows of 64 tokens")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Measure, print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small stacks: does it run?")
    parser.add_argument("--only", metavar="REMEDY", choices=REMEDIES, help="measure one remedy, without table and plot")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all rows and versions there")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the norm against the number of windows")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = [arguments.only] if arguments.only else list(REMEDIES)
    rows = measure_all(names, arguments.quick, 64 if arguments.quick else 256)
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"rows": rows, "hardware": {"cpu": cpu_name(), "threads": 1}, **environment()}, indent=1)
        )
    if arguments.quick:
        return
    if not arguments.only:
        print(table(rows))
    if DEFAULT in names:
        ratio = worst_ratio(rows)
        verdict = "met" if ratio <= BOUND else "MISSED"
        print(f"{DEFAULT}: at most {ratio:.2f} times the norm of N = 1 ({verdict}: {BOUND:g})")
    if arguments.plot and not arguments.only:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
