"""How verbs describe themselves: a summary, a description, options, and examples that can be run as they stand."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

PROGRAM = "sleeptrain"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line and the place to look, and whose descriptions keep their line breaks."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)
        told = "print the stack trace if something fails"
        self.add_argument("--traceback", action="store_true", default=argparse.SUPPRESS, help=told)

    def error(self, message: str) -> NoReturn:
        """Says what was wrong with the arguments and exits with status 2."""
        self.exit(2, f"error: {message}\nsee {self.prog} --help\n")


def add_command(subparsers: Any, name: str, summary: str, description: str, examples: Sequence[str]) -> Parser:
    """A parser for a verb.

    summary       a few words, shown in the list of verbs
    description   what it does, shown by its own --help
    examples      whole command lines, each starting with `sleeptrain `
    """
    wrong = [example for example in examples if not example.startswith(f"{PROGRAM} ")]
    if wrong or not examples:
        raise ValueError(f"{name}: examples must be command lines that start with {PROGRAM}, not {wrong}")
    epilog = "\n  ".join(["Examples:", *examples])
    parser: Parser = subparsers.add_parser(name, help=summary, description=description, epilog=epilog)
    return parser
