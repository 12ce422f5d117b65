"""What it costs that bf16 training computes with bf16 norms and decays: held-out loss of trained runs with some weights rounded.

DeepSpeed casts every parameter that a pass computes with to bf16, norms, `A_log` and `dt_bias` included; the optimizer updates
float32 copies. For each run, which must have been trained in fp32, prints the loss with its own weights, and how much it changes
where norms, `A_log` and `dt_bias` are rounded to bf16, or all other weights, or all. Everything else is computed in float32.

    python -m benchmarks.rounded_weights [--samples 1000] [--out FILE] RUN...
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sleeptrain.data.evaluation import Evaluation
from sleeptrain.evaluate.measure import measure
from sleeptrain.recipe.load_trained import open_trained
from sleeptrain.run.folder import runs_of_seeds

KINDS: dict[str, Callable[[Tensor], bool]] = {
    "norms, A_log and dt_bias": lambda weight: weight.dim() == 1,
    "all others": lambda weight: weight.dim() > 1,
    "all": lambda weight: True,
}


def losses(run: Path, samples: int) -> dict[str, float]:
    """Loss in nats a target on the first held-out samples, by what is rounded ("nothing" first)."""
    trained = open_trained(run)
    model, recipe = trained.model, trained.recipe
    own = {name: value.clone() for name, value in model.named_parameters()}
    split = Evaluation(recipe.data, micro=64, samples=samples, window=recipe.sleep.window)
    found = {}
    for kind, rounds in {"nothing": lambda weight: False, **KINDS}.items():
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(own[name].bfloat16() if rounds(parameter) else own[name])
        found[kind] = measure(model, recipe.sleep, split.manifest, split, recipe.sleep.passes).loss
    return found


def main() -> None:
    """Print the changes of the loss as a table, or write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="runs, or folders of runs with several seeds")
    parser.add_argument("--samples", type=int, default=1000, metavar="N", help="held-out samples (default: 1000)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the losses there as JSON")
    args = parser.parse_args()
    rows: dict[str, dict[str, float]] = {}
    for run in [run for path in args.runs for run in runs_of_seeds(Path(path))]:
        rows[str(run)] = row = losses(Path(run), args.samples)
        changes = "  ".join(f"{kind} {row[kind] - row['nothing']:+.2e}" for kind in KINDS)
        print(f"{run}: loss {row['nothing']:.4f}; rounded: {changes}", flush=True)
    for kind in KINDS:
        sizes = [abs(row[kind] - row["nothing"]) for row in rows.values()]
        print(f"{kind}: mean absolute change {statistics.mean(sizes):.2e}, largest {max(sizes):.2e}")
    if args.out:
        body: dict[str, Any] = {
            "command": f"python -m benchmarks.rounded_weights --samples {args.samples} {' '.join(args.runs)}",
            "versions": {"torch": metadata.version("torch")}, "losses": rows,
        }  # fmt: skip
        args.out.write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
