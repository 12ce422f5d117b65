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
        "Read a model (safetensors, config.json, tokenizer.json) and write a run folder with its weights, from which training starts "
        "with init_from and which generate reads: dense Qwen3.5 text models and exports of sleeptrain, Jet-Nemotron, Ouro. No code of "
        "the folder is run, and no pickle is opened. Every tensor is used exactly once, or listed as left out with the reason. Ouro "
        "has attention alone and gets new Gated DeltaNet blocks, which add nothing until they are trained."
    )
    parser = add_command(subparsers, "import", "read a model of another program", description, EXAMPLES)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a folder with config.json and *.safetensors")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="the folder to write; it must not exist")
    parser.add_argument(
        "--layers", metavar="PATTERN",
        help="for Ouro: the blocks in order, with an A for each of the model and a G for each new one; without it (AAGAA)x6 for 24 blocks",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Import, and print what was left out and how to go on. Returns 0."""
    from sleeptrain.convert.import_hf import import_hf

    imported = import_hf(args.folder, args.out, args.layers)
    for name, reason in imported.dropped.items():
        print(f"left out  {name}: {reason}")
    for line in imported.added:
        print(f"new       {line}")
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
