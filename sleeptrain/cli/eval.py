"""`sleeptrain eval`: accuracy by label of runs, or tasks of lm-evaluation-harness, at one or more numbers of passes."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sleeptrain.cli.eval_lm_eval import add_lm_eval, check_lm_eval, lm_eval_options, run_lm_eval
from sleeptrain.cli.help import add_command, whole_numbers
from sleeptrain.errors import UserError

EXAMPLES = (
    "sleeptrain eval runs/rule110-tiny",
    "sleeptrain eval runs/rule110-tiny --passes 1,2,4 --samples 64 --json",
    "sleeptrain eval runs/rule110-tiny --out runs/rule110-tiny/report",
    "sleeptrain eval runs/seeds --samples 64",
)


def add(subparsers: Any) -> None:
    """Add this command to the program's parser."""
    description = (
        "Measure accuracy and loss by task label beside baselines, state norm, pass residual and retention, "
        "with the number of passes of training or with several numbers. Runs that differ in their seeds alone are one "
        "result, with range and interval over the seeds. With --lm-eval an exported folder is evaluated on tasks of "
        "lm-evaluation-harness, whose contexts sleep."
    )
    parser = add_command(subparsers, "eval", "evaluate trained runs", description, EXAMPLES)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN",
        help="a run folder, one of several seeds, or a checkpoint, such as RUN/checkpoints/best; with --lm-eval an exported folder",
    )  # fmt: skip
    parser.add_argument(
        "--passes", type=whole_numbers(1), metavar="N,N,...", help="numbers of passes to evaluate (default: as trained)"
    )
    parser.add_argument("--data", metavar="DIR", help="use another folder of shards of the same task")
    parser.add_argument(
        "--samples", type=_positive, metavar="N", help="evaluate only the first N samples of every source"
    )
    parser.add_argument("--rows", type=_positive, default=64, metavar="N", help="rows per batch (default: 64)")
    parser.add_argument("--fp32", action="store_true", help="compute in float32 (default: as trained, train.precision)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR",
        help="write report.md, report.json and a plot to DIR; with --lm-eval results and samples",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    add_lm_eval(parser)
    parser.set_defaults(run=run)


def _positive(text: str) -> int:
    number, *more = whole_numbers(1)(text)
    if more:
        raise argparse.ArgumentTypeError(f"{text!r} is not one whole number")
    return number


def run(args: argparse.Namespace) -> int:
    """Evaluate the runs, print the table or JSON, write the report. Returns 0."""
    check_lm_eval(args)
    command = shlex.join(["sleeptrain", "eval", *args.runs, *_options(args)])
    evaluate = run_lm_eval if args.lm_eval else _run_tasks
    if not args.out:
        return evaluate(args, command)
    with _prepared(args.out):
        return evaluate(args, command)


def _run_tasks(args: argparse.Namespace, command: str) -> int:
    """Evaluate runs on the tasks of their data."""
    from sleeptrain.evaluate.report import print_report, to_json, write
    from sleeptrain.evaluate.runs import evaluate
    from sleeptrain.run.environment import environment

    entries, manifest = evaluate(args.runs, args.passes, args.data, args.rows, args.samples, args.json, args.fp32)
    if args.json:
        json.dump(to_json(entries, manifest, environment(), command), sys.stdout, indent=1)
        print()
    else:
        print_report(entries, manifest)
    if args.out:
        for path in write(entries, manifest, args.out, environment(), command):
            print(path, file=sys.stderr)
    return 0


@contextmanager
def _prepared(out: Path) -> Iterator[None]:
    """Create the report folder before evaluation, so that an error there loses no work. Raises UserError.

    Folders that were created for a report that was not written are removed again.
    """
    created = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        try:
            out.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=out):
                pass
        except OSError as error:
            raise UserError(
                f"--out {out}: the report cannot be written there ({error.strerror}); name another folder"
            ) from None
        yield
    finally:
        for folder in created:
            with suppress(OSError):  # what is not empty stays
                folder.rmdir()


def _options(args: argparse.Namespace) -> list[str]:
    given = {
        "--passes": args.passes and ",".join(map(str, args.passes)),
        "--data": args.data,
        "--samples": args.samples,
    }
    words = [word for name, value in given.items() if value for word in (name, str(value))]
    return words + ["--fp32"] * args.fp32 + lm_eval_options(args)
