"""Parsers of commands: a summary, a description, options, and examples that run as written."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from sleeptrain.sizes import read_size

PROGRAM = "sleeptrain"


class FilledHelp(argparse.RawDescriptionHelpFormatter):
    """Help whose paragraphs are as wide as the terminal; lists of examples and other indented lines stay as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip().split("\n\n")
        return "\n\n".join(part if "\n  " in part else textwrap.fill(part, width) for part in paragraphs)


class Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line with a pointer to --help."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", FilledHelp)
        super().__init__(allow_abbrev=False, **options)
        about = "print the stack trace of an error"
        self.add_argument("--traceback", action="store_true", default=argparse.SUPPRESS, help=about)
        # Values of the wrong type are refused in the words of this program instead of Python's.
        self.register("type", int, _number(int, "a whole number"))
        self.register("type", float, _number(float, "a number"))
        # The innermost parser of a command line, for errors that are found after it has been parsed.
        self.set_defaults(parser=self)

    def error(self, message: str) -> NoReturn:
        """Print what is wrong with the arguments and exit with status 2."""
        self.exit(2, f"error: {message}\nsee {self.prog} --help\n")

    def unrecognized(self, words: Sequence[str], keys: bool) -> NoReturn:
        """Report words that are neither options nor arguments, with the option that is meant; `keys`: key=value may follow."""
        options = [word.partition("=")[0] for word in words if word.startswith("-")]
        near = get_close_matches(options[0], self._option_string_actions, n=1, cutoff=0.75) if options else []
        hint = f"; did you mean {near[0]}?" if near else ""
        if options and not near and keys:
            hint = "; changes of keys have no dashes, such as train.steps=100"
        self.error(f"unrecognized arguments: {' '.join(words)}{hint}")


def _number(kind: type[float], what: str) -> Callable[[str], float]:
    """A type of an option, for argparse: `kind` of its text."""

    def read(text: str) -> float:
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None

    return read


def whole_numbers(least: int) -> Callable[[str], list[int]]:
    """A type of an option: whole numbers of at least `least`, separated by commas."""

    def read(text: str) -> list[int]:
        for part in text.split(","):
            if not part.isdecimal() or int(part) < least:
                raise argparse.ArgumentTypeError(f"{part!r} is not a whole number of at least {least}")
        return [int(part) for part in text.split(",")]

    return read


def memory_size(text: str) -> int:
    """A type of an option: a number of bytes with its unit, such as 80GiB."""
    try:
        return read_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_command(subparsers: Any, name: str, summary: str, description: str, examples: Sequence[str]) -> Parser:
    """Add and return the parser of a command. Raises ValueError for missing or malformed examples.

    summary       a few words, shown in the list of commands
    description   what the command does, shown by its --help
    examples      complete command lines, each starting with `sleeptrain `
    """
    wrong = [example for example in examples if not example.startswith(f"{PROGRAM} ")]
    if wrong or not examples:
        raise ValueError(f"{name}: examples must be command lines that start with {PROGRAM}, not {wrong}")
    epilog = "\n  ".join(["Examples:", *examples])
    parser: Parser = subparsers.add_parser(name, help=summary, description=description, epilog=epilog)
    return parser
