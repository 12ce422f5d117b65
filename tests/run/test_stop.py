"""Requests to stop: which signals, how often, and the file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sleeptrain.run.stop import BY_FILE, SIGNALS, StopRequest
from tests.distributed import run


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: signal.Signals(number).name)
def test_a_signal_is_a_request(number: int) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.agreed("cpu")
        os.kill(os.getpid(), number)
        assert stop.agreed("cpu") and stop.reason == number
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_repeated_signal_of_a_scheduler_is_the_same_request(number: int) -> None:
    with StopRequest() as stop:
        for _ in range(5):
            os.kill(os.getpid(), number)
        assert stop.agreed("cpu")


def test_a_second_interrupt_ends_the_process_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one that comes with the first: a terminal and a launcher send the same Ctrl-C."""
    now = [0.0]
    monkeypatch.setattr("sleeptrain.run.stop.time.monotonic", lambda: now[0])
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        now[0] = 0.5
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.agreed("cpu")
        now[0] = 1.5
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_file_in_the_run_folder_is_a_request(tmp_path: Path) -> None:
    """It is removed, so that the next start does not stop at once."""
    with StopRequest(tmp_path) as stop:
        assert not stop.agreed("cpu")
        (tmp_path / "stop").touch()
        assert stop.agreed("cpu") and stop.reason == BY_FILE
        assert not (tmp_path / "stop").exists() and stop.agreed("cpu")


def test_a_file_does_not_outlive_the_run_that_it_asked(tmp_path: Path) -> None:
    """`job cancel` asks all runs of a job, done ones too; a later continuation of these would stop before its first step."""
    (tmp_path / "stop").touch()
    with pytest.raises(ValueError, match="failed"), StopRequest(tmp_path):
        raise ValueError("failed")
    assert (tmp_path / "stop").exists()
    with StopRequest(tmp_path):
        pass
    assert not (tmp_path / "stop").exists()


def stopped_by(folder: str, rank: int) -> tuple[list[bool], int | None]:
    from sleeptrain.parallel.process import init_distributed

    process = init_distributed()
    with StopRequest(Path(folder) if process.rank == 0 else None) as stop:
        answers = [stop.agreed("cpu")]
        if process.rank == rank:
            os.kill(os.getpid(), signal.SIGUSR1)
        answers.append(stop.agreed("cpu"))
        return answers, stop.reason


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_stops_all(tmp_path: Path, rank: int) -> None:
    assert run(stopped_by, 2, str(tmp_path), rank) == [([False, True], signal.SIGUSR1)] * 2


def test_the_first_signal_is_confirmed() -> None:
    code = "import os, signal\nfrom sleeptrain.run.stop import StopRequest\nwith StopRequest(announce=True): [os.kill(os.getpid(), signal.SIGTERM) for _ in range(2)]"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "\nstopping after this step; Ctrl-C again stops without a save\n"
