"""The `sleeptrain` program: parses the command line, runs the command, and maps errors to messages and exit statuses.

Exit status: 0 done, 1 failed, 2 the request was wrong, 75 run me again (stopped and saved, or a process was lost), 128 + n ended by
signal n without a save.
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

from sleep_launch.submit import SlurmError
from sleeptrain import __version__
from sleeptrain.cli.help import PROGRAM, Parser
from sleeptrain.errors import CONTINUE, RunFailed, TryAgain, UserError

COMMANDS = (
    "data", "plan", "train", "launch", "job", "preflight", "study", "report",
    "eval", "generate", "serve", "export", "import", "doctor",
)  # fmt: skip
"""The modules of this package that are commands, in the order of `--help`."""
DESCRIPTION = """\
Pretrain language models that sleep. RECIPE and other files may be names of files in configs/; key=value changes them. \
`sleeptrain COMMAND --help` has examples of each command.

Exit status: 0 done, 1 failed, 2 the request was wrong, 75 saved: run me again, 128 + n ended by signal n without a save.
"""
EXAMPLES = """\
Examples:
  sleeptrain doctor
  sleeptrain data build rule110-tiny --out runs/data/rule110-tiny
  sleeptrain train rule110-tiny
  sleeptrain eval runs/rule110-tiny
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command line (default: the arguments of this process) and return its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    # One thread a process, as torchrun and sleep_launch set: the operations of models for a CPU are too small to be divided,
    # and sums do not depend on the machine. OpenMP reads the variable when torch is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    args = argparse.Namespace()
    try:
        args = parse(argv)
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except SystemExit as error:
        # argparse exits after --help (0), and after a wrong option (2), for which it has printed a message.
        return int(error.code or 0)
    except UserError as error:
        for line in error.errors:
            print(f"error: {line}", file=sys.stderr)
        return 2
    except (RunFailed, SlurmError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except TryAgain as error:
        print(f"error: {error}", file=sys.stderr)
        return CONTINUE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_has_left():
            return 1
        _report(error, args)
        return 1


def parse(argv: list[str]) -> argparse.Namespace:
    """The parsed arguments of a command line, with the command's function as `run`.

    Raises UserError for a missing or unknown command, and SystemExit where argparse does.
    """
    if not argv:
        raise UserError(f"no command is given; the commands are {', '.join(COMMANDS)}")
    words = [word for word in argv if not word.startswith("-")]
    if words and words[0] not in COMMANDS:
        near = get_close_matches(words[0], COMMANDS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}"
        raise UserError(f"there is no command {words[0]!r}; {hint}")
    parser = build_parser()
    args, left = parser.parse_known_args(argv)
    # argparse fills all positionals at once, so that it reports key=value words after an option as unrecognized.
    if left and (not hasattr(args, "overrides") or any(word.startswith("-") for word in left)):
        args.parser.unrecognized(left, hasattr(args, "overrides"))
    if left:
        args.overrides = [*args.overrides, *left]
    return args


def build_parser() -> Parser:
    """The parser of the program with those of all commands."""
    parser = Parser(prog=PROGRAM, description=DESCRIPTION, epilog=EXAMPLES)
    # DeepSpeed's launcher adds this option; the rank is read from LOCAL_RANK, which it sets as well.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    subparsers = parser.add_subparsers(
        title="commands", dest="command", required=True, metavar="COMMAND", parser_class=Parser
    )
    for command in COMMANDS:
        importlib.import_module(f"sleeptrain.cli.{command}").add(subparsers)
    return parser


def _reader_has_left() -> bool:
    """Whether standard output is a pipe whose reader has exited, as in `sleeptrain ... | head`. If so, redirects it to /dev/null."""
    try:
        pipe = sys.stdout.fileno()
    except (OSError, ValueError):
        return False  # replaced by an object without a file descriptor
    poll = select.poll()
    poll.register(pipe, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    # Python flushes standard output at exit, which would raise again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), pipe)
    return True


def _report(error: Exception, args: argparse.Namespace) -> None:
    """Print the error in one line and write the stack trace to a file.

    The file is in `args.failures`, which a command sets to the run folder, else in the folder of temporary files. --traceback
    prints the stack trace instead.
    """
    text = "".join(traceback.format_exception(error))
    first = next(iter(str(error).splitlines()), "")
    print(f"error: {type(error).__name__}: {first}" if first else f"error: {type(error).__name__}", file=sys.stderr)
    if getattr(args, "traceback", False):
        print(text, file=sys.stderr, end="")
        return
    name = ""
    try:
        handle, name = tempfile.mkstemp(".traceback.txt", f"{PROGRAM}-", getattr(args, "failures", None))
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError:  # for example, the disk is full
        if name:
            Path(name).unlink(missing_ok=True)
        print(text, file=sys.stderr, end="")
        return
    print(f"the traceback is in {Path(name)}; --traceback prints it", file=sys.stderr)
