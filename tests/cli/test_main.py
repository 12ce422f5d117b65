"""The program around the commands: help, wrong requests, errors and exit statuses."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sleeptrain as package
from sleeptrain.cli import doctor
from sleeptrain.cli.help import Parser, add_command
from sleeptrain.cli.main import COMMANDS, parse
from sleeptrain.errors import ProcessLost, TryAgain, UserError

HEAVY = {
    "torch",
    "numpy",
    "omegaconf",
    "pydantic",
    "rich",
    "deepspeed",
    "megatron",
    "triton",
    "streaming",
    "wandb",
    "transformers",
    "matplotlib",
}


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["data", "build", "--help"]])
def test_help_imports_no_heavy_package(words: list[str]) -> None:
    code = f"import sys; from sleeptrain.cli.main import main; status = main({words}); print(*sys.modules, file=sys.stderr); sys.exit(status)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Examples:" in done.stdout
    assert not HEAVY & set(done.stderr.split())


@pytest.mark.parametrize(("setting", "threads"), [({}, "1 1"), ({"OMP_NUM_THREADS": "2"}, "2")])
def test_a_command_computes_on_one_thread_unless_told(setting: dict[str, str], threads: str) -> None:
    code = "import os, sys; from sleeptrain.cli import doctor, main\ndef run(args):\n import torch; print(os.environ['OMP_NUM_THREADS'], torch.get_num_threads()); return 0\ndoctor.run = run; sys.exit(main.main(['doctor']))"
    environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | setting
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(threads)  # torch takes no more threads than there are cores


def test_every_help_has_examples_that_parse(
    parsers: dict[str, Any], examples: Callable[[str], list[list[str]]]
) -> None:
    assert {f"sleeptrain {command}" for command in COMMANDS} < set(parsers)
    for prog in parsers:
        command = prog.removeprefix("sleeptrain").strip()
        for words in examples(command):
            assert callable(parse(words).run)
            assert words[: len(command.split())] == command.split()


def test_the_module_and_the_program_print_the_version(sleeptrain: Any) -> None:
    assert sleeptrain("--version").out == f"sleeptrain {package.__version__}\n"
    done = subprocess.run([sys.executable, "-m", "sleeptrain", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"sleeptrain {package.__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "error: there is no command 'trian'; did you mean train?\n"),
        (["xyz"], f"error: there is no command 'xyz'; the commands are {', '.join(COMMANDS)}\n"),
        ([], f"error: no command is given; the commands are {', '.join(COMMANDS)}\n"),
        (["train"], "error: the following arguments are required: RECIPE\nsee sleeptrain train --help\n"),
        (
            ["doctor", "--jsn"],
            "error: unrecognized arguments: --jsn; did you mean --json?\nsee sleeptrain doctor --help\n",
        ),
        (["doctor", "a=b"], "error: unrecognized arguments: a=b\nsee sleeptrain doctor --help\n"),
        (
            ["train", "x", "--steps=4"],
            "error: unrecognized arguments: --steps=4; changes of keys have no dashes, such as train.steps=100\nsee sleeptrain train --help\n",
        ),
        (
            ["plan", "x", "--processes", "two"],
            "error: argument --processes: 'two' is not a whole number\nsee sleeptrain plan --help\n",
        ),
        (
            ["data", "inspect", "x", "--sample", "1"],
            "error: unrecognized arguments: --sample 1; did you mean --samples?\nsee sleeptrain data inspect --help\n",
        ),
        (
            ["data", "inspect"],
            "error: the following arguments are required: SOURCE\nsee sleeptrain data inspect --help\n",
        ),
    ],
)
def test_wrong_requests_exit_2(sleeptrain: Any, words: list[str], message: str) -> None:
    ran = sleeptrain(*words)
    assert (ran.status, ran.out, ran.err) == (2, "", message)


def test_overrides_may_follow_options() -> None:
    args = parse(["data", "build", "rule110", "a=1", "--out", "x", "b=2", "c=3"])
    assert args.overrides == ["a=1", "b=2", "c=3"]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes `doctor` raise an exception."""

    def set_error(error: BaseException) -> None:
        def run(args: argparse.Namespace) -> int:
            raise error

        monkeypatch.setattr(doctor, "run", run)

    return set_error


def test_every_user_error_is_one_line(sleeptrain: Any, failing: Any) -> None:
    failing(UserError(["one", "two"]))
    ran = sleeptrain("doctor")
    assert (ran.status, ran.out, ran.err) == (2, "", "error: one\nerror: two\n")


@pytest.mark.parametrize("error", [TryAgain("the folder is in use"), ProcessLost("rank 1 is gone")])
def test_what_can_be_continued_exits_75(sleeptrain: Any, failing: Any, error: TryAgain) -> None:
    failing(error)
    ran = sleeptrain("doctor")
    assert (ran.status, ran.out, ran.err) == (75, "", f"error: {error}\n")


def test_keyboard_interrupt_exits_130(sleeptrain: Any, failing: Any) -> None:
    failing(KeyboardInterrupt())
    ran = sleeptrain("doctor")
    assert (ran.status, ran.err) == (130, "interrupted\n")


def test_an_exception_is_one_line_and_its_traceback_a_file(
    sleeptrain: Any, failing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    failing(RuntimeError("no\nluck"))
    ran = sleeptrain("doctor")
    (file,) = tmp_path.iterdir()
    assert ran.status == 1
    assert ran.err == f"error: RuntimeError: no\nthe traceback is in {file}; --traceback prints it\n"
    assert "Traceback" in file.read_text() and "luck" in file.read_text()


def test_a_command_may_set_the_folder_of_the_traceback(
    sleeptrain: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(args: argparse.Namespace) -> int:
        args.failures = tmp_path
        raise RuntimeError

    monkeypatch.setattr(doctor, "run", run)
    assert sleeptrain("doctor").err.startswith("error: RuntimeError\n")
    assert len(list(tmp_path.glob("sleeptrain-*.traceback.txt"))) == 1


@pytest.mark.parametrize("words", [["--traceback", "doctor"], ["doctor", "--traceback"]])
def test_traceback_option_prints_the_traceback(sleeptrain: Any, failing: Any, words: list[str]) -> None:
    failing(RuntimeError("no luck"))
    ran = sleeptrain(*words)
    assert ran.status == 1 and "Traceback (most recent call last)" in ran.err and "traceback is in" not in ran.err


def test_a_closed_output_pipe_prints_no_error() -> None:
    code = "import sys; from sleeptrain.cli import doctor, main\ndef run(args):\n for i in range(100000): print(i)\n return 0\ndoctor.run = run; sys.exit(main.main(['doctor']))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None and program.stderr is not None
        program.stdout.readline()
        program.stdout.close()
        assert program.stderr.read() == ""
    assert program.returncode == 1


def test_a_broken_pipe_other_than_the_output_is_an_error(sleeptrain: Any, failing: Any) -> None:
    failing(BrokenPipeError("peer is gone"))
    ran = sleeptrain("doctor", "--traceback")
    assert ran.status == 1 and ran.err.startswith("error: BrokenPipeError: peer is gone\n")


def test_commands_need_well_formed_examples() -> None:
    subparsers = Parser(prog="sleeptrain").add_subparsers()
    for examples in ([], ["python -m sleeptrain"]):
        with pytest.raises(ValueError, match="examples must be"):
            add_command(subparsers, "command", "", "", examples)
