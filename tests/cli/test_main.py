"""The program around the verbs: help, wrong requests, failures and exit statuses."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sleeptrain as package
from sleeptrain.cli import doctor
from sleeptrain.cli.help import Parser, add_verb
from sleeptrain.cli.main import VERBS, parse
from sleeptrain.config import UserError

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
def test_help_is_quick(words: list[str]) -> None:
    code = f"import sys; from sleeptrain.cli.main import main; status = main({words}); print(*sys.modules, file=sys.stderr); sys.exit(status)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Examples:" in done.stdout
    assert not HEAVY & set(done.stderr.split())


def test_every_help_has_examples_that_parse(
    parsers: dict[str, Any], examples: Callable[[str], list[list[str]]]
) -> None:
    assert {f"sleeptrain {verb}" for verb in VERBS} < set(parsers)
    for prog in parsers:
        verb = prog.removeprefix("sleeptrain").strip()
        for words in examples(verb):
            assert callable(parse(words).run)
            assert words[: len(verb.split())] == verb.split()


def test_module_and_version(sleeptrain: Any) -> None:
    assert sleeptrain("--version").out == f"sleeptrain {package.__version__}\n"
    done = subprocess.run([sys.executable, "-m", "sleeptrain", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"sleeptrain {package.__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "error: there is no verb 'trian'; did you mean train?\n"),
        (["xyz"], f"error: there is no verb 'xyz'; there are {', '.join(VERBS)}\n"),
        ([], "error: the following arguments are required: VERB\nsee sleeptrain --help\n"),
        (["doctor", "--jsn"], "error: unrecognized arguments: --jsn\nsee sleeptrain --help\n"),
        (["doctor", "a=b"], "error: unrecognized arguments: a=b\nsee sleeptrain --help\n"),
        (["data", "inspect"], "error: the following arguments are required: DIR\nsee sleeptrain data inspect --help\n"),
    ],
)
def test_wrong_requests_exit_2(sleeptrain: Any, words: list[str], message: str) -> None:
    ran = sleeptrain(*words)
    assert (ran.status, ran.out, ran.err) == (2, "", message)


def test_changes_may_follow_options() -> None:
    args = parse(["data", "build", "rule110", "a=1", "--out", "x", "b=2", "c=3"])
    assert args.overrides == ["a=1", "b=2", "c=3"]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes `doctor` raise."""

    def set_error(error: BaseException) -> None:
        def run(args: argparse.Namespace) -> int:
            raise error

        monkeypatch.setattr(doctor, "run", run)

    return set_error


def test_every_user_error_has_a_line(sleeptrain: Any, failing: Any) -> None:
    failing(UserError(["one", "two"]))
    ran = sleeptrain("doctor")
    assert (ran.status, ran.out, ran.err) == (2, "", "error: one\nerror: two\n")


def test_interruption(sleeptrain: Any, failing: Any) -> None:
    failing(KeyboardInterrupt())
    ran = sleeptrain("doctor")
    assert (ran.status, ran.err) == (130, "interrupted\n")


def test_failures_are_short_and_leave_a_traceback(
    sleeptrain: Any, failing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    failing(RuntimeError("no\nluck"))
    ran = sleeptrain("doctor")
    (file,) = tmp_path.iterdir()
    assert ran.status == 1
    assert ran.err == f"error: RuntimeError: no\nthe traceback is in {file}; --traceback prints it\n"
    assert "Traceback" in file.read_text() and "luck" in file.read_text()


def test_a_verb_may_name_the_folder_of_the_traceback(
    sleeptrain: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(args: argparse.Namespace) -> int:
        args.failures = tmp_path
        raise RuntimeError

    monkeypatch.setattr(doctor, "run", run)
    assert sleeptrain("doctor").err.startswith("error: RuntimeError\n")
    assert len(list(tmp_path.glob("sleeptrain-*.traceback.txt"))) == 1


@pytest.mark.parametrize("words", [["--traceback", "doctor"], ["doctor", "--traceback"]])
def test_the_traceback_on_request(sleeptrain: Any, failing: Any, words: list[str]) -> None:
    failing(RuntimeError("no luck"))
    ran = sleeptrain(*words)
    assert ran.status == 1 and "Traceback (most recent call last)" in ran.err and "traceback is in" not in ran.err


def test_a_reader_that_leaves_is_no_failure_worth_words() -> None:
    code = "import sys; from sleeptrain.cli import doctor, main\ndef run(args):\n for i in range(100000): print(i)\n return 0\ndoctor.run = run; sys.exit(main.main(['doctor']))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None and program.stderr is not None
        program.stdout.readline()
        program.stdout.close()
        assert program.stderr.read() == ""
    assert program.returncode == 1


def test_a_broken_pipe_elsewhere_is_a_failure(sleeptrain: Any, failing: Any) -> None:
    failing(BrokenPipeError("peer is gone"))
    ran = sleeptrain("doctor", "--traceback")
    assert ran.status == 1 and ran.err.startswith("error: BrokenPipeError: peer is gone\n")


def test_verbs_cannot_go_without_good_examples() -> None:
    subparsers = Parser(prog="sleeptrain").add_subparsers()
    for examples in ([], ["python -m sleeptrain"]):
        with pytest.raises(ValueError, match="examples must be"):
            add_verb(subparsers, "verb", "", "", examples)
