"""`sleeptrain eval --lm-eval`: tasks of lm-evaluation-harness with an exported folder."""

from __future__ import annotations

import argparse
import json
import re
import sys
from importlib import metadata
from pathlib import Path

from sleeptrain.errors import UserError

NEEDED = "lm_eval==0.4.13 torch==2.13.0 transformers==5.23.0 rich==15.0.0"
"""What an environment must have beside sleeptrain. That of training has an older transformers."""


def add_lm_eval(parser: argparse.ArgumentParser) -> None:
    """Add the options of lm-evaluation-harness to the command's parser."""
    group = parser.add_argument_group(
        "lm-evaluation-harness, with a folder of sleeptrain export --to hf instead of runs"
    )
    group.add_argument("--lm-eval", type=_names, metavar="TASK,...", help="evaluate these tasks; every text sleeps")
    group.add_argument("--task-files", type=Path, metavar="DIR", help="a folder with YAML files of more tasks")
    group.add_argument("--few-shot", type=int, metavar="N", help="examples in a context (default: as the task says)")
    group.add_argument(
        "--trust-remote-code", action="store_true",
        help="run the modeling_sleep.py of the folder instead of that of this program",
    )  # fmt: skip


def _names(text: str) -> list[str]:
    if not all(names := text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name")
    return names


def check_lm_eval(args: argparse.Namespace) -> None:
    """Raise UserError for options that do not go together, and where packages are missing."""
    given = {
        "--task-files": args.task_files,
        "--few-shot": args.few_shot,
        "--trust-remote-code": args.trust_remote_code or None,
    }
    if args.lm_eval is None:
        if alone := next((name for name, value in given.items() if value is not None), None):
            raise UserError(f"{alone} goes with --lm-eval TASK")
        return
    if len(args.runs) != 1:
        raise UserError(f"--lm-eval evaluates one exported folder, not {len(args.runs)}")
    if args.data is not None:
        raise UserError("--data does not apply to --lm-eval, whose tasks name their data; leave it out")
    if args.few_shot is not None and args.few_shot < 0:
        raise UserError(f"--few-shot {args.few_shot}: must be 0 or more")
    if args.task_files is not None and not args.task_files.is_dir():
        raise UserError(f"--task-files {args.task_files} is no folder; name one with YAML files of tasks")
    for name, least in (("lm_eval", "0.4.13"), ("transformers", "5")):
        if (found := _version(name)) is None or _numbers(found) < _numbers(least):
            has = f"this one has {name} {found}" if found else f"this one has no {name}"
            raise UserError(
                f"--lm-eval needs an environment with {name} {least}, and {has}. Make another one: pip install {NEEDED}, then "
                "pip install --no-deps and the folder of a checkout of sleeptrain"
            )


def _numbers(version: str) -> list[int]:
    """The numbers that a version begins with."""
    return [int(number) for number in re.findall(r"^\d+|(?<=\.)\d+", version)]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def run_lm_eval(args: argparse.Namespace, command: str) -> int:
    """Evaluate, print the table or JSON, write the results. Returns 0."""
    from sleeptrain.evaluate.lm_eval_model import SleepLM
    from sleeptrain.evaluate.lm_eval_sweep import HarnessTasks, print_results, sweep, to_json, write_results
    from sleeptrain.run.environment import environment

    lm = SleepLM(
        args.runs[0], batch_size=args.rows, dtype="float32" if args.fp32 else "auto", trust_remote_code=args.trust_remote_code
    )  # fmt: skip
    tasks = HarnessTasks(args.lm_eval, args.task_files, args.samples, args.few_shot)
    results = sweep(lm, tasks, args.passes or [lm.passes])
    body = to_json(results, lm, environment(), command)
    if args.json:
        json.dump(body, sys.stdout, indent=1)
        print()
    else:
        print_results(results)
    if args.out:
        for path in write_results(results, body, args.out):
            print(path, file=sys.stderr)
    return 0


def lm_eval_options(args: argparse.Namespace) -> list[str]:
    """The options as words of a command line."""
    given = {
        "--lm-eval": args.lm_eval and ",".join(args.lm_eval),
        "--task-files": args.task_files,
        "--few-shot": args.few_shot,
    }
    words = [word for name, value in given.items() if value is not None for word in (name, str(value))]
    return words + ["--trust-remote-code"] * args.trust_remote_code
