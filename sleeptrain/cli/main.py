"""The `sleeptrain` program: finds the verb, runs it, and turns what goes wrong into a message and an exit status.

0 done, 1 failed, 2 the request was wrong, 128 + n interrupted by signal n.
"""

from __future__ import annotations

import argparse
import importlib
import os
import select
import sys
import tempfile
import traceback
from difflib import get_close_matches
from pathlib import Path

from sleeptrain import __version__
from sleeptrain.cli.help import PROGRAM, Parser
from sleeptrain.config.errors import RunFailed, UserError

COMMANDS = ("data", "plan", "train", "eval", "generate", "doctor")
"""The modules of this package that are verbs, in the order of `--help`."""
EXAMPLES = """\
Examples:
  sleeptrain doctor
  sleeptrain data build rule110-tiny --out runs/data/rule110-tiny
  sleeptrain train rule110-tiny
"""


def main(argv: list[str] | None = None) -> int:
    """Runs one command line (default: this process's) and returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    args = argparse.Namespace()
    try:
        args = parse(argv)
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except SystemExit as error:
        # argparse exits by itself after --help (0) and after a wrong option (2), which it has said.
        return int(error.code or 0)
    except UserError as error:
        for line in error.errors:
            print(f"error: {line}", file=sys.stderr)
        return 2
    except RunFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_listens():
            return 1
        _report(error, args)
        return 1


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments of a command line, with the verb's `run`. Raises UserError for an unknown verb, SystemExit as argparse does."""
    words = [word for word in argv if not word.startswith("-")]
    if words and words[0] not in COMMANDS:
        near = get_close_matches(words[0], COMMANDS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        raise UserError(f"there is no command {words[0]!r}; {hint}")
    parser = build_parser()
    args, left = parser.parse_known_args(argv)
    # argparse takes `recipe --option key=value` for a complete request with a word too many: it fills positionals in one go.
    if left and (not hasattr(args, "overrides") or any(word.startswith("-") for word in left)):
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    if left:
        args.overrides = [*args.overrides, *left]
    return args


def build_parser() -> Parser:
    """The parser of the whole program."""
    parser = Parser(prog=PROGRAM, description="Pretraining of language models that sleep.", epilog=EXAMPLES)
    # DeepSpeed's launcher says it here as well as in LOCAL_RANK, which is what we read.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    subparsers = parser.add_subparsers(title="verbs", dest="verb", required=True, metavar="VERB", parser_class=Parser)
    for verb in COMMANDS:
        importlib.import_module(f"sleeptrain.cli.{verb}").add(subparsers)
    return parser


def _nobody_listens() -> bool:
    """Whether standard output is a pipe whose reader has left, as in `sleeptrain ... | head`."""
    try:
        pipe = sys.stdout.fileno()
    except (OSError, ValueError):
        return False  # something in memory stands in for it
    poll = select.poll()
    poll.register(pipe, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    # Python flushes once more at exit and would complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), pipe)
    return True


def _report(error: Exception, args: argparse.Namespace) -> None:
    """One line for the user, and the stack trace in a file, in the run folder if the verb has set `args.failures` to it."""
    text = "".join(traceback.format_exception(error))
    first = next(iter(str(error).splitlines()), "")
    print(f"error: {type(error).__name__}: {first}" if first else f"error: {type(error).__name__}", file=sys.stderr)
    if getattr(args, "traceback", False):
        print(text, file=sys.stderr, end="")
        return
    try:
        handle, name = tempfile.mkstemp(".traceback.txt", f"{PROGRAM}-", getattr(args, "failures", None))
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError:  # a full disk may be what went wrong
        print(text, file=sys.stderr, end="")
        return
    print(f"the traceback is in {Path(name)}; --traceback prints it", file=sys.stderr)
