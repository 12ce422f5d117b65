"""`sleeptrain generate`: continue prompts with a trained model, one pass per token."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from sleeptrain.cli.generate_engine import add_engine, engine_problems, open_session
from sleeptrain.cli.help import add_command
from sleeptrain.errors import UserError

if TYPE_CHECKING:
    from sleeptrain.inference.continuation import Continuation, TextSession
    from sleeptrain.inference.text import Codec

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
        "memory is constant.\n\n"
        "A prompt file whose name ends with .jsonl holds one prompt a line: a JSON string, or an object with the text in\n"
        '"prompt". All are continued in one batch, and one JSON object is printed for each, in their order.'
    )
    parser = add_command(subparsers, "generate", "continue a prompt", description, EXAMPLES)
    parser.add_argument(
        "folder", metavar="RUN", help="a run folder, or a checkpoint in one, such as RUN/checkpoints/best"
    )
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", help="text; for a task with symbols: symbols separated by spaces")
    prompt.add_argument(
        "--prompt-file", type=Path, metavar="FILE", help="read the prompt from FILE, or from standard input (-)"
    )
    parser.add_argument("--tokens", type=int, default=200, metavar="N", help="generate at most N tokens (default: 200)")
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before TEXT, which is not shown; may be repeated",
    )
    _add_sampling(parser)
    parser.add_argument("--passes", type=int, metavar="N", help="number of passes of a sleep (default: as trained)")
    add_engine(parser)
    parser.add_argument(
        "--load-state",
        type=Path,
        metavar="FILE",
        help="continue the text that --save-state saved, as if it came before the prompt",
    )
    parser.add_argument(
        "--save-state",
        type=Path,
        metavar="FILE",
        help="save the fast weights and the unfinished window after the last token",
    )
    parser.set_defaults(run=run)


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    number: dict[str, Any] = {"type": int, "default": 0}
    share: dict[str, Any] = {"type": float, "metavar": "P"}
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="sampling temperature (default: 0, greedy)"
    )
    parser.add_argument(
        "--top-k", **number, metavar="K", help="sample from the K most probable tokens (default: 0, all)"
    )
    top_p = "sample from the most probable tokens that together have probability P (default: 1)"
    parser.add_argument("--top-p", **share, default=1.0, help=top_p)
    min_p = "sample from tokens with at least P times the probability of the most probable one (default: 0)"
    parser.add_argument("--min-p", **share, default=0.0, help=min_p)
    parser.add_argument("--seed", **number, metavar="SEED", help="seed of sampling (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Feed the prompts, then print each token when it is generated, or a line for each prompt when all have ended. Returns 0."""
    from sleeptrain.inference import SleepSession
    from sleeptrain.inference.continuation import Continuation, padded
    from sleeptrain.inference.sampling import Sampling
    from sleeptrain.inference.state_file import save_state

    _check(args)
    texts = _prompts(args)
    sampling = Sampling(args.temperature, args.top_k, args.top_p, args.seed, args.min_p)
    session, codec = open_session(args, len(texts))
    prompts = _encode(args, codec, texts, session)
    session.prefill(*padded(prompts, session.logits.device))
    rows = [Continuation(codec, prompt, args.tokens, sampling, args.stop) for prompt in prompts]
    if _is_jsonl(args):
        for text, row, found in zip(texts, rows, _write(session, rows), strict=True):
            print(json.dumps({"prompt": text, "text": found, "tokens": len(row.tokens), "finish": row.finish}))
    else:
        _write(session, rows, sys.stdout)
    if args.save_state is not None:
        assert isinstance(session, SleepSession)  # which _check demands
        save_state(session, args.save_state)
    return 0


def _write(session: TextSession, rows: Sequence[Continuation], out: TextIO | None = None) -> list[str]:
    """The text of every row, also written to `out` while it is generated."""
    from sleeptrain.inference.continuation import write_token

    written = [""] * len(rows)
    while any(row.finish is None for row in rows):
        for i, text in enumerate(write_token(session, rows)):
            written[i] += text
            if out is not None:
                out.write(text)
                out.flush()
    if out is not None:
        out.write("\n")
    return written


def _encode(args: argparse.Namespace, codec: Codec, texts: Sequence[str], session: TextSession) -> list[list[int]]:
    """The tokens of the prompts. Raises UserError for one that cannot be encoded, and for one that is empty at the start of a text."""
    lengths = session.lengths.tolist()
    if len(lengths) != len(texts):
        raise UserError(
            f"--load-state {args.load_state} has {len(lengths)} rows for {len(texts)} prompts; give {len(lengths)}"
        )
    prompts = []
    for number, (text, length) in enumerate(zip(texts, lengths, strict=True), start=1):
        source = "--prompt" if args.prompt_file is None else "--prompt-file"
        source = f"{source} {args.prompt_file}:{number}" if _is_jsonl(args) else source
        try:
            prompts.append(codec.encode(text, continued=length > 0))
        except UserError as error:
            raise UserError(f"{source}: {error}") from None
        if not length and not (text and prompts[-1]):
            raise UserError(f"{source} is empty: give at least one token")
    return prompts


def _check(args: argparse.Namespace) -> None:
    """Raise UserError that lists every option out of range."""
    rules = (
        ("--tokens", args.tokens, args.tokens >= 1, "at least 1"),
        ("--passes", args.passes, args.passes is None or args.passes >= 1, "at least 1"),
        ("--temperature", args.temperature, 0 <= args.temperature < math.inf, "0 or more"),
        ("--top-k", args.top_k, args.top_k >= 0, "0 or more"),
        ("--top-p", args.top_p, 0 < args.top_p <= 1, "above 0 and at most 1"),
        ("--min-p", args.min_p, 0 <= args.min_p <= 1, "from 0 to 1"),
        ("--seed", args.seed, args.seed >= 0, "0 or more"),
        ("--stop", args.stop, all(args.stop), "texts that are not empty"),
        (
            "--save-state",
            args.save_state,
            not args.save_state or args.save_state.parent.is_dir(),
            "in a folder that exists",
        ),
    )
    errors = [f"{name} {value}: must be {wanted}" for name, value, good, wanted in rules if not good]
    errors += engine_problems(args)
    if errors:
        raise UserError(errors)


def _is_jsonl(args: argparse.Namespace) -> bool:
    return args.prompt_file is not None and args.prompt_file.suffix == ".jsonl"


def _prompts(args: argparse.Namespace) -> list[str]:
    """The prompt, or those of a .jsonl file."""
    if args.prompt_file is None:
        return [str(args.prompt)]
    try:
        content = sys.stdin.buffer.read() if str(args.prompt_file) == "-" else args.prompt_file.read_bytes()
    except OSError as error:
        raise UserError(f"--prompt-file {args.prompt_file} cannot be read: {error.strerror}") from None
    # As it stands: not even line ends are converted, and bytes that are not UTF-8 are kept.
    text = content.decode("utf-8", "surrogateescape")
    if not _is_jsonl(args):
        return [text]
    numbered = [(i, line) for i, line in enumerate(text.split("\n"), start=1) if line.strip()]
    lines = [_line(line, f"--prompt-file {args.prompt_file}:{i}") for i, line in numbered]
    if not lines:
        raise UserError(f"--prompt-file {args.prompt_file} is empty: give at least one prompt")
    return lines


def _line(line: str, source: str) -> str:
    """The prompt of a line of a .jsonl file."""
    try:
        found = json.loads(line)
    except ValueError as error:
        raise UserError(f"{source} is no JSON: {error}") from None
    found = found.get("prompt") if isinstance(found, dict) else found
    if not isinstance(found, str):
        raise UserError(f'{source} holds no prompt; write a JSON string, or an object with the text in "prompt"')
    return found
