"""`sleeptrain harness`: tasks of lm-evaluation-harness on an exported folder, at one or more numbers of passes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from sleeptrain.cli.help import add_command, whole_numbers

EXAMPLES = (
    "sleeptrain harness runs/text-small-hf --tasks lambada_openai,piqa --passes 1,2,4",
    "sleeptrain harness runs/text-small-hf --tasks my_task --include tasks --samples 100 --json",
)


def add(subparsers: Any) -> None:
    """Add this command to the program's parser."""
    description = (
        "Evaluate an exported Hugging Face folder with lm-evaluation-harness. Windows of every context sleep before they are "
        "evicted, in tasks that score answers and in those that generate them; no text is cut. Needs lm-eval and transformers 5, "
        "which are in an environment of their own; docs/export.md says how."
    )
    parser = add_command(subparsers, "harness", "evaluate an export on public tasks", description, EXAMPLES)
    parser.add_argument("folder", type=Path, metavar="DIR", help="a folder that sleeptrain export --to hf wrote")
    parser.add_argument("--tasks", required=True, metavar="NAME,NAME,...", help="names of tasks")
    parser.add_argument(
        "--passes",
        type=whole_numbers(1),
        default=[1],
        metavar="N,N,...",
        help="numbers of passes (default: 1, no sleep)",
    )
    parser.add_argument("--include", type=Path, metavar="DIR", help="a folder with YAML files of more tasks")
    samples = {"type": int, "metavar": "N", "help": "only the first N samples of every task"}
    parser.add_argument("--samples", **samples)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate, and print a row for every metric with a column for every number of passes. Returns 0."""
    from sleeptrain.evaluate.harness import evaluate_folder

    results = evaluate_folder(args.folder, args.tasks.split(","), args.passes, args.include, args.samples)
    if args.json:
        print(json.dumps(results, indent=1, default=str))
        return 0
    first = next(iter(results.values()))
    names = [
        (task, metric) for task, found in first.items() for metric, value in found.items() if _is_score(metric, value)
    ]
    width = max(len(f"{task} {metric}") for task, metric in names)
    print(" " * width, *(f"{f'N={n}':>10}" for n in results))
    for task, metric in names:
        print(f"{f'{task} {metric}':<{width}}", *(f"{found[task][metric]:>10.4f}" for found in results.values()))
    return 0


def _is_score(metric: str, value: Any) -> bool:
    return isinstance(value, float) and "_stderr," not in metric
