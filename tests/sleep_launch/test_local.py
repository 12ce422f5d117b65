"""Launching ranks on one machine, with real processes: environment, output, failures and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sleep_launch.local import TIMED_OUT, run

PAUSE = "import signal; signal.pause()"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_environment_of_each_rank(tmp_path: Path) -> None:
    code = f"""
import os, pathlib
names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "MORE"]
pathlib.Path({str(tmp_path)!r}, os.environ["RANK"] + ".txt").write_text(" ".join(os.environ[name] for name in names))
"""
    assert run(python(code), 3, env={"MORE": "yes", "OMP_NUM_THREADS": "1"}) == 0
    rows = [(tmp_path / f"{rank}.txt").read_text().split() for rank in range(3)]
    assert [row[:5] for row in rows] == [[str(rank), str(rank), "3", "3", "127.0.0.1"] for rank in range(3)]
    assert len({row[5] for row in rows}) == 1 and int(rows[0][5]) > 0
    assert all(row[6:] == ["1", "yes"] for row in rows)


def test_rank_0_writes_to_the_terminal_and_others_to_logs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = "import os, sys; print('out', os.environ['RANK']); print('err', os.environ['RANK'], file=sys.stderr)"
    assert run(python(code), 2, log_dir=tmp_path) == 0
    shown = capfd.readouterr()
    assert shown.out == "out 0\n" and shown.err == "err 0\n"
    assert sorted((tmp_path / "rank-1.log").read_text().splitlines()) == ["err 1", "out 1"]
    assert [path.name for path in tmp_path.iterdir()] == ["rank-1.log"]


def test_a_failed_rank_terminates_the_others_and_its_log_is_shown(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = f"""
import os, sys
if os.environ["RANK"] == "2":
    for line in range(100): print("line", line)
    sys.exit(7)
{PAUSE}
"""
    assert run(python(code), 3, log_dir=tmp_path) == 7
    error = capfd.readouterr().err
    assert error.startswith("sleep_launch: rank 2 of 3 failed with exit status 7\n")
    assert "line 99\n" in error and "line 60\n" in error and "line 59\n" not in error


def test_status_of_a_killed_rank_is_128_plus_the_signal(capfd: pytest.CaptureFixture[str]) -> None:
    code = f"import os, signal\nif os.environ['RANK'] == '1': os.kill(os.getpid(), signal.SIGKILL)\n{PAUSE}"
    assert run(python(code), 2) == 128 + signal.SIGKILL
    assert "rank 1 of 2 was ended by SIGKILL" in capfd.readouterr().err


def test_orphaned_workers_of_a_rank_are_killed() -> None:
    read, write = os.pipe()
    orphan = "import signal, sys; held = open(sys.argv[1], 'wb'); print('ready', flush=True); signal.pause()"
    code = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {orphan!r}, "/proc/{os.getpid()}/fd/{write}"], stdout=subprocess.PIPE)
child.stdout.readline()
"""
    assert run(python(code), 1) == 0
    os.close(write)
    assert os.read(read, 1) == b"", "the pipe closes when the orphan is killed"
    os.close(read)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_forwarded_to_every_rank_which_may_exit_normally(tmp_path: Path, number: signal.Signals) -> None:
    code = """
import signal, sys
numbers = {signal.SIGINT, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
open(sys.argv[1], "wb").write(b"r")
print("finished by", int(signal.sigwait(numbers)), flush=True)
"""
    read, write = os.pipe()
    ready_at = f"/proc/{os.getpid()}/fd/{write}"
    launch = [
        sys.executable,
        "-m",
        "sleep_launch.local",
        "--processes",
        "2",
        "--log-dir",
        str(tmp_path),
        "--timeout",
        "60",
    ]
    launcher = subprocess.Popen([*launch, "--", *python(code), ready_at], stdout=subprocess.PIPE, text=True)
    ready = b""
    while len(ready) < 2:
        ready += os.read(read, 2)
    launcher.send_signal(number)
    output, _ = launcher.communicate()
    os.close(read)
    os.close(write)
    assert launcher.returncode == 0
    assert output == f"finished by {int(number)}\n"
    assert (tmp_path / "rank-1.log").read_text() == f"finished by {int(number)}\n"


def test_a_signal_that_arrives_while_ranks_are_started_reaches_all_of_them(tmp_path: Path) -> None:
    """Each of them once: a second one would mean to stop without saving."""
    rank = """
import os, signal, sys
numbers = {signal.SIGINT, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
open(sys.argv[1] + os.environ["RANK"], "w").close()
first = signal.sigwait(numbers)
print(int(first), signal.sigtimedwait(numbers, 0.5))
"""
    launcher = """
import os, signal, sys, time
from pathlib import Path
from sleep_launch import local

start = local._start

def start_and_interrupt(command, rank, *rest):
    process = start(command, rank, *rest)
    while not Path(command[-1] + str(rank)).exists():
        time.sleep(0.01)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)  # the rank runs, but its start has not returned
    return process

local._start = start_and_interrupt
sys.exit(local.main(sys.argv[1:]))
"""
    words = [
        "--processes",
        "3",
        "--log-dir",
        str(tmp_path),
        "--timeout",
        "60",
        "--",
        *python(rank),
        str(tmp_path / "ready-"),
    ]
    done = subprocess.run([sys.executable, "-c", launcher, *words], capture_output=True, text=True, check=False)
    outputs = [done.stdout, *((tmp_path / f"rank-{number}.log").read_text() for number in (1, 2))]
    assert (done.returncode, outputs) == (0, ["15 None\n"] * 3), done.stderr


def test_status_after_a_timeout_is_124(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(python(PAUSE), 2, timeout=0.2) == TIMED_OUT
    assert "still running after 0.2 s" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--", "no-such-program"], "no-such-program: no such program"),
        (["--processes", "0", "--", "true"], "must be at least 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    from sleep_launch.local import main

    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_program_in_pythons_folder_is_found_without_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "")
    assert run([Path(sys.executable).name, "-c", "pass"], 1) == 0
