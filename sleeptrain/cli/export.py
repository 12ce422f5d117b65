"""`sleeptrain export`: a trained model as files that other engines read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleeptrain.cli.help import add_command, memory_size
from sleeptrain.errors import UserError
from sleeptrain.sizes import read_size

if TYPE_CHECKING:
    from sleeptrain.convert.source import Exported

EXAMPLES = (
    "sleeptrain export runs/text-small --to hf --out runs/text-small-hf",
    "sleeptrain export runs/rule110-tiny --to hf --out runs/rule110-hf --dtype bf16 --max-shard-size 100KB",
    "sleeptrain export runs/text-small --to gguf --out runs/text-small.gguf --type f16",
)
OPTIONS = {"hf": ("dtype", "max_shard_size"), "gguf": ("type",)}
"""The options that only one format has."""


def add(subparsers: Any) -> None:
    """Add this command to the program's parser."""
    description = (
        "Write a trained model as a Hugging Face folder or as a GGUF file. transformers, vLLM and SGLang read the folder as a plain "
        "Qwen3.5 text model, and with trust_remote_code transformers loads a class whose windows sleep. llama.cpp reads the file. "
        "Every tensor is used exactly once; a model with an option that the format cannot express is refused. It needs no GPU, and "
        "memory for the largest tensor."
    )
    parser = add_command(subparsers, "export", "write a trained model for other engines", description, EXAMPLES)
    parser.add_argument(
        "folder", metavar="RUN", help="a run folder, or a checkpoint in one, such as RUN/checkpoints/best"
    )
    parser.add_argument(
        "--to", required=True, choices=list(OPTIONS), help="the format: a Hugging Face folder, or a GGUF file"
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="PATH", help="the folder or file to write; it must not exist"
    )
    parser.add_argument(
        "--dtype", choices=["fp32", "bf16"],
        help="of a folder: dtype of matrices; norms and decay rates stay fp32 (default: fp32, exactly the trained weights)",
    )  # fmt: skip
    parser.add_argument(
        "--max-shard-size", type=memory_size, metavar="SIZE", help="of a folder: largest file of weights (default: 4GB)"
    )
    parser.add_argument(
        "--type", choices=["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0"],
        help="of a file: type of matrices; vectors and convolutions stay f32 (default: f32, exactly the trained weights). "
        "Quantised types need llama-cpp-python",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export, and print the files. Returns 0."""
    for name in (option for form, options in OPTIONS.items() if form != args.to for option in options):
        if getattr(args, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} does not apply to --to {args.to}; leave it out")
    exported, folder = _export(args)
    for name, size in exported.files.items():
        print(f"{size:>15,}  {folder / name}")
    how = "quantised by llama.cpp" if (args.type or "").startswith("q") else "read again and equal to the checkpoint"
    print(f"{exported.parameters:,} parameters in {exported.tensors} tensors, {how}")
    return 0


def _export(args: argparse.Namespace) -> tuple[Exported, Path]:
    """What was written, and the folder in which its files are."""
    import torch

    from sleeptrain.convert.export import export_hf
    from sleeptrain.convert.export_gguf import export_gguf

    if args.to == "gguf":
        return export_gguf(Path(args.folder), args.out, args.type or "f32"), args.out.parent
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    return export_hf(Path(args.folder), args.out, dtype, args.max_shard_size or read_size("4GB")), args.out
