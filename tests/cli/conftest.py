"""Fixtures: the program in this process, the examples of its help texts, untrained run folders."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sleeptrain.cli.main import build_parser, main
from tests.cli.runs import untrained
from tests.train.jobs import rule110_data, text_data


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str


@pytest.fixture
def sleeptrain(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """`sleeptrain("data", "inspect", path)` runs one command line in this process."""

    def run(*words: str) -> Ran:
        status = main(list(words))
        shown = capsys.readouterr()
        return Ran(status, shown.out, shown.err)

    return run


@pytest.fixture
def parsers() -> dict[str, argparse.ArgumentParser]:
    """Every parser by its command: `sleeptrain`, `sleeptrain data`, `sleeptrain data build`, ..."""
    return {parser.prog: parser for parser in _walk(build_parser())}


@pytest.fixture
def examples(parsers: dict[str, argparse.ArgumentParser]) -> Callable[[str], list[list[str]]]:
    """`examples("data build")`: the arguments, as `main` takes them, of every example in the help text of a command."""

    def find(command: str) -> list[list[str]]:
        text = parsers[f"sleeptrain {command}".strip()].format_help()
        _, heading, block = text.partition("\nExamples:\n")
        assert heading, f"{command} has no examples"
        lines = [line.strip() for line in block.splitlines() if line.strip()]
        assert all(line.startswith("sleeptrain ") for line in lines), lines
        return [shlex.split(line)[1:] for line in lines]

    return find


def _walk(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _walk(inner)


@pytest.fixture(scope="session")
def untrained_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the shards `rule110` and `text` and the untrained runs `runs/rule110` and `runs/text`."""
    folder = tmp_path_factory.mktemp("untrained")
    rule110 = untrained(folder, "runs/rule110", rule110_data(folder), "sleep.window=9", "sleep.passes=2")
    untrained(folder, "runs/text", text_data(folder), "sleep.window=16", "sleep.loop.trigger=every", "sleep.passes=2")
    return rule110.parent.parent
