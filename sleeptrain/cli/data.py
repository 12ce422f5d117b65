"""`sleeptrain data`: build shards of a task, inspect them, train a tokenizer."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from sleeptrain.cli.help import add_command
from sleeptrain.errors import RunFailed, UserError

EXAMPLES = {
    "data": [
        "sleeptrain data build rule110-tiny --out runs/data/rule110-tiny",
        "sleeptrain data inspect runs/data/rule110-tiny",
    ],
    "build": [
        "sleeptrain data build rule110-tiny --out runs/data/rule110-tiny",
        "sleeptrain data build rule110 --out runs/data/rule110-short train=256 test=64 seed=1",
        "sleeptrain data build text --out runs/data/documents paths=[documents]",
    ],
    "inspect": [
        "sleeptrain data inspect runs/data/rule110-tiny",
        "sleeptrain data inspect runs/data/rule110-tiny --samples 4",
        "sleeptrain data inspect runs/data/rule110-tiny --json",
    ],
    "tokenizer": ["sleeptrain data tokenizer documents --vocab 1024 --out tokenizer.json"],
}


def add(subparsers: Any) -> None:
    """Add this command to the program's parser."""
    parser = add_command(
        subparsers,
        "data",
        "build or inspect shards",
        "Build shards, inspect them, or train a tokenizer.",
        EXAMPLES["data"],
    )
    actions = parser.add_subparsers(title="actions", dest="action", required=True, metavar="ACTION")

    build = add_command(
        actions, "build", "write the shards of a task",
        "Write the shards of a task and their manifest. The task text reads your own files: paths=[FILE,FOLDER,...], with\n"
        "tokenizer=FILE as token ids. The same request writes the same bytes; a folder that already holds them is not changed.", EXAMPLES["build"],
    )  # fmt: skip
    build.add_argument(
        "task", metavar="TASK", help="a YAML file, the name of one in configs/task, or the name of a task"
    )
    build.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="parameters of the task; train and test (number of samples); seed",
    )
    build.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    build.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="processes that read text (default: the cores that this process may use)",
    )
    build.add_argument("--json", action="store_true", help="print the manifest")
    build.set_defaults(run=run_build)

    inspect = add_command(
        actions, "inspect", "show the contents of a folder of shards",
        "Print the task, the window layout, the counts and the first samples of a folder of shards, or of a URL as in data.sources.", EXAMPLES["inspect"],
    )  # fmt: skip
    inspect.add_argument("path", metavar="SOURCE", help="folder of shards, or its URL")
    inspect.add_argument(
        "--samples", type=int, default=2, metavar="N", help="samples of each split to show (default: 2)"
    )
    inspect.add_argument("--json", action="store_true", help="print the manifest and the samples as JSON")
    inspect.add_argument("--plot", metavar="PNG", help="draw the lengths of the documents of a text")
    inspect.set_defaults(run=run_inspect)

    tokenizer = add_command(
        actions, "tokenizer", "train a tokenizer",
        "Train a byte-level BPE tokenizer on the documents under some paths, and write its tokenizer.json.", EXAMPLES["tokenizer"],
    )  # fmt: skip
    tokenizer.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="files and folders, as for the task text; or folders of samples that were built as bytes",
    )
    tokenizer.add_argument("--out", required=True, metavar="FILE", help="file to write")
    tokenizer.add_argument("--vocab", type=int, default=32_768, metavar="N", help="number of ids (default: 32,768)")
    tokenizer.add_argument(
        "--field", default="text", help="field of lines, and column of tables, with the text (default: text)"
    )
    tokenizer.set_defaults(run=run_tokenizer)


def run_build(args: argparse.Namespace) -> int:
    """Build the shards and print their counts or manifest. Returns 0."""
    if args.processes is not None and args.processes < 1:
        raise UserError(f"--processes {args.processes}: must be at least 1")
    parameters = parse_parameters(args.overrides)
    from sleep_data.build import DiskFull, build_task
    from sleep_data.processes import available
    from sleeptrain.cli.progress import with_progress
    from sleeptrain.recipe.task_files import task_file

    task = task_file(args.task)
    processes = args.processes or available()
    try:
        manifest = with_progress(
            lambda show: build_task(task, args.out, parameters, processes=processes, progress=show, note=print_note),
            args.json,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    except DiskFull as error:
        raise RunFailed(str(error)) from None
    if args.json:
        print(json.dumps(manifest, indent=1))
        return 0
    counted = "samples" if manifest["block"] is None else "documents"
    counts = ", ".join(
        f"{split} {entry[counted]:,} {counted} of {entry['tokens']:,} tokens"
        for split, entry in sorted(manifest["splits"].items(), reverse=True)
    )
    print(f"{args.out}: {manifest['task']}, {counts}")
    if manifest["corpus"]:
        from sleeptrain.data.inspect import describe_corpus
        from sleeptrain.data.manifest import Manifest

        print(f"read: {describe_corpus(Manifest.from_json(manifest))}")
    return 0


def run_tokenizer(args: argparse.Namespace) -> int:
    """Train a tokenizer and write its file. Returns 0."""
    from sleep_data.train_tokenizer import train_tokenizer

    try:
        trained = train_tokenizer(args.paths, args.vocab, Path(args.out), args.field)
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from None
    print(
        f"{args.out}: {trained.ids:,} ids, {trained.bytes_per_token:.2f} bytes a token in the first {trained.bytes:,} bytes it was trained on"
    )
    return 0


def print_note(line: str) -> None:
    """Print a remark on the inputs of a build to stderr."""
    print(f"note: {line}", file=sys.stderr)


def run_inspect(args: argparse.Namespace) -> int:
    """Print the contents of a folder of shards. Returns 0."""
    if args.samples < 0:
        raise UserError(f"--samples {args.samples}: must not be negative")
    from sleeptrain.data.inspect import inspect
    from sleeptrain.recipe.task_files import with_build_command
    from sleeptrain.run.folder import CONFIG, is_run_config

    if is_run_config(Path(args.path) / CONFIG):
        raise UserError(
            f"{args.path} is the folder of a run; its data is named under data.sources in {Path(args.path) / CONFIG}"
        )
    try:
        contents = inspect(args.path, args.samples)
    except UserError as error:
        raise UserError(with_build_command(error)) from None
    if args.plot:
        contents.plot_lengths(Path(args.plot))
    print(json.dumps(contents.to_json(), indent=1) if args.json else contents.text())
    return 0


def parse_parameters(words: list[str]) -> dict[str, Any]:
    """`key=value` words as a dict of YAML values. Raises UserError that lists every malformed word."""
    from sleeptrain.config.load import read_override
    from sleeptrain.config.tree import plain

    errors: list[str] = []
    parsed = [read_override(word, errors) for word in words]
    if errors:
        raise UserError(errors)
    return {key: value for one in parsed for key, value in plain(one).items()}
