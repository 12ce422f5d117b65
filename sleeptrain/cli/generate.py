"""`sleeptrain generate`: continue a prompt with a trained model, one pass per token."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from sleeptrain.cli.help import add_command
from sleeptrain.errors import UserError

EXAMPLES = (
    'sleeptrain generate runs/text-small --prompt "def read(path):" --tokens 40',
    'sleeptrain generate runs/text-small --prompt "import " --tokens 40 --temperature 0.8 --top-p 0.95 --seed 1',
    'sleeptrain generate runs/rule110-tiny --prompt "T1 0 1 1 0 1 0 0 1" --tokens 1',
)


def add(subparsers: Any) -> None:
    """Add this command to the program's parser."""
    description = (
        "Continue a prompt with a trained model. Each full window of the prompt and of the generated text sleeps "
        "before it is evicted. A new token costs one pass, independent of the number of passes of a sleep, and "
        "memory is constant."
    )
    parser = add_command(subparsers, "generate", "continue a prompt", description, EXAMPLES)
    parser.add_argument("folder", metavar="RUN", help="a run folder, or a checkpoint in one")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", help="text; for a task with symbols: symbols separated by spaces")
    prompt.add_argument("--prompt-file", type=Path, metavar="FILE", help="read the prompt from FILE")
    parser.add_argument("--tokens", type=int, default=200, metavar="N", help="generate at most N tokens (default: 200)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="sampling temperature (default: 0, greedy)"
    )
    parser.add_argument(
        "--top-k", type=int, default=0, metavar="K", help="sample from the K most probable tokens (default: 0, all)"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="sample from the most probable tokens that together have probability P (default: 1)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="SEED", help="seed of sampling (default: 0)")
    parser.add_argument("--passes", type=int, metavar="N", help="number of passes of a sleep (default: as trained)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Feed the prompt, then print each token when it is generated. Returns 0."""
    import torch

    from sleeptrain.inference import SleepSession
    from sleeptrain.inference.sampling import Sampling
    from sleeptrain.inference.text import Codec
    from sleeptrain.recipe.load_trained import open_trained

    _check(args)
    text = _prompt(args)
    sampling = Sampling(args.temperature, args.top_k, args.top_p, args.seed)
    trained = open_trained(args.folder)
    codec = Codec(trained.manifest, trained.run)
    prompt = codec.encode(text)
    if not text or not prompt:
        raise UserError(
            f"{'--prompt' if args.prompt_file is None else '--prompt-file'} is empty: give at least one token"
        )
    session = SleepSession(trained.model, trained.recipe.sleep, passes=args.passes)
    session.feed(torch.tensor([prompt], device=trained.model.embed.weight.device))
    tokens = (int(token) for token in session.generate(args.tokens, sampling, codec.stop))
    for piece in codec.decode(tokens, prompt):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raise UserError that lists every option out of range."""
    rules = (
        ("--tokens", args.tokens, args.tokens >= 1, "at least 1"),
        ("--passes", args.passes, args.passes is None or args.passes >= 1, "at least 1"),
        ("--temperature", args.temperature, 0 <= args.temperature < math.inf, "0 or more"),
        ("--top-k", args.top_k, args.top_k >= 0, "0 or more"),
        ("--top-p", args.top_p, 0 < args.top_p <= 1, "above 0 and at most 1"),
        ("--seed", args.seed, args.seed >= 0, "0 or more"),
    )
    errors = [f"{name} {value}: must be {wanted}" for name, value, good, wanted in rules if not good]
    if errors:
        raise UserError(errors)


def _prompt(args: argparse.Namespace) -> str:
    if args.prompt_file is None:
        return str(args.prompt)
    try:
        # As it stands: not even line ends are converted, and bytes that are not UTF-8 are kept.
        return str(args.prompt_file.read_bytes().decode("utf-8", "surrogateescape"))
    except OSError as error:
        raise UserError(f"--prompt-file {args.prompt_file} cannot be read: {error}") from None
