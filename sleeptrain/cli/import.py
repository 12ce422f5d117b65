"""`sleeptrain import`: a model in a Hugging Face folder as a run folder that training starts from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sleeptrain.cli.help import add_command

EXAMPLES = ("sleeptrain import runs/text-small-hf --out runs/text-small-imported",)


def add(subparsers: Any) -> None:
    """Add this command to the program's parser."""
    description = (
        "Read a dense Qwen3.5 text model or Jet-Nemotron (safetensors, config.json, tokenizer.json; also an export of sleeptrain) and "
        "write a run folder with its weights, from which training starts with init_from and which generate reads. No code of the folder is run, "
        "and no pickle is opened. Every tensor is used exactly once, or listed as left out with the reason."
    )
    parser = add_command(subparsers, "import", "read a model of another program", description, EXAMPLES)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a folder with config.json and *.safetensors")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="the folder to write; it must not exist")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Import, and print what was left out and how to go on. Returns 0."""
    from sleeptrain.convert.import_hf import import_hf

    imported = import_hf(args.folder, args.out)
    for name, reason in imported.dropped.items():
        print(f"left out  {name}: {reason}")
    for name, text in imported.notices.items():
        print(f"{args.out / name}:\n{text}")
        if not imported.licences:
            print(
                f"{args.folder} has no licence file; put a copy of the licence into {args.out}, from where exports take it"
            )
    print(f"{imported.tensors:,} tensors are in {args.out}. Train it on data of the same tokenizer:")
    print(
        f"  sleeptrain train {args.out}/config.yaml init_from={args.out} run_dir=runs/mine 'data.sources=[{{path: DATA}}]'"
    )
    return 0
