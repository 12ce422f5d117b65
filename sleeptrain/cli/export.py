"""`sleeptrain export`: a trained model as a folder that other engines read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sleeptrain.cli.help import add_command, memory_size
from sleeptrain.sizes import read_size

EXAMPLES = (
    "sleeptrain export runs/text-small --to hf --out runs/text-small-hf",
    "sleeptrain export runs/rule110-tiny --to hf --out runs/rule110-hf --dtype bf16 --max-shard-size 100KB",
)


def add(subparsers: Any) -> None:
    """Add this command to the program's parser."""
    description = (
        "Write a trained model as a Hugging Face folder: transformers, vLLM, SGLang and converters of llama.cpp read it as a plain "
        "Qwen3.5 text model, and with trust_remote_code transformers loads a class whose windows sleep. Every tensor is used exactly "
        "once; a model with an option that the format cannot express is refused. It needs no GPU, and memory for the largest tensor."
    )
    parser = add_command(subparsers, "export", "write a trained model for other engines", description, EXAMPLES)
    parser.add_argument("folder", metavar="RUN", help="a run folder, or a checkpoint in one")
    parser.add_argument("--to", required=True, choices=["hf"], help="the format: a Hugging Face folder")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="the folder to write; it must not exist")
    parser.add_argument(
        "--dtype", choices=["fp32", "bf16"], default="fp32",
        help="dtype of matrices; norms and decay rates stay fp32 (default: fp32, exactly the trained weights)",
    )  # fmt: skip
    parser.add_argument(
        "--max-shard-size", type=memory_size, default=read_size("4GB"), metavar="SIZE",
        help="largest file of weights (default: 4GB)",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export, and print the files. Returns 0."""
    import torch

    from sleeptrain.convert.export import export_hf

    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    exported = export_hf(Path(args.folder), args.out, dtype, args.max_shard_size)
    for name, size in exported.files.items():
        print(f"{size:>15,}  {args.out / name}")
    print(f"{exported.parameters:,} parameters in {exported.tensors} tensors, read again and equal to the checkpoint")
    return 0
