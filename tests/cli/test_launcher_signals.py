"""Stop requests to runs of two processes, by launcher, signal and target: lines of the table in docs/reliability.md."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from sleep_launch.local import FORWARDED, _free_port
from sleeptrain import checkpoint
from sleeptrain.errors import CONTINUE
from tests.cli.lines import TINY
from tests.cli.programs import WAIT, rows, small_recipe, start, wait_for

FOREVER = 10**6
LOCAL, TORCHRUN = "sleep_launch.local", "torchrun"
LAUNCHERS = {
    LOCAL: [sys.executable, "-m", "sleep_launch.local", "--processes", "2", "--", sys.executable],
    TORCHRUN: [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", "2"],
}
TARGETS = ("launcher", "rank 1", "all")
CASES = [
    *((LOCAL, number, target) for number in FORWARDED for target in TARGETS),
    *((TORCHRUN, number, target) for number in FORWARDED for target in TARGETS),
    (LOCAL, signal.SIGKILL, "launcher"),
    (TORCHRUN, signal.SIGKILL, "launcher"),
]
SAMPLE = [(LOCAL, signal.SIGUSR2, "rank 1"), (TORCHRUN, signal.SIGKILL, "launcher")]
"""Those that CI runs."""
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What torchrun hands on to its ranks; others end it, and its ranks are told by the kernel."""


def status(launcher: str, number: signal.Signals, target: str) -> int:
    """How a launcher ends."""
    if target != "rank 1" and (number == signal.SIGKILL or (launcher == TORCHRUN and number not in HANDLED)):
        return -number
    return CONTINUE if launcher == LOCAL else 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe(tmp_path_factory.mktemp("launcher_signals"))


def words(run: str, steps: int) -> list[str]:
    data = ["data.sources=[{path: data}]", "sleep.window=9", "train.batch=8", "checkpoint.every=0"]
    return ["train", "small.yaml", *data, *TINY, f"train.steps={steps}", f"run_dir={run}"]


def ranks_of(run: Path) -> list[int]:
    """The processes of the ranks, as their heartbeats say."""
    return [int(json.loads(path.read_text())["pid"]) for path in sorted((run / "heartbeats").glob("rank-*.json"))]


@pytest.mark.parametrize(
    ("launcher", "number", "target"),
    [pytest.param(*case, marks=pytest.mark.slow if case in SAMPLE else pytest.mark.exhaustive) for case in CASES],
)
def test_a_request_stops_and_saves(folder: Path, launcher: str, number: signal.Signals, target: str) -> None:
    """Under `all` a rank gets the signal itself, and from its launcher."""
    name = f"{launcher}-{number.name}-{target.replace(' ', '-')}"
    run, port = folder / name, ["--master-port", str(_free_port())] if launcher == TORCHRUN else []
    program = start(folder, [*LAUNCHERS[launcher], *port, "-m", "sleeptrain", *words(name, FOREVER)])
    ranks: list[int] = []
    try:
        wait_for(run, 3, program)
        ranks = ranks_of(run)
        assert len(ranks) == 2
        for process in {"launcher": [program.pid], "rank 1": ranks[1:], "all": [program.pid, *ranks]}[target]:
            os.kill(process, number)
        printed = program.communicate(timeout=WAIT)[1]  # until rank 0, which has the pipe, has ended
    finally:
        if sys.exc_info()[0] is not None:
            for process in (program.pid, *ranks):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
    assert program.returncode == status(launcher, number, target), printed
    step = rows(run)[-1]["step"]
    assert json.loads((run / "outcome.json").read_text()) == {
        "state": "stopped", "step": step, "by": "signal", "job": None,
    }  # fmt: skip
    newest = checkpoint.latest(run / "checkpoints")
    assert newest is not None and newest.name == f"step-{step:08d}" and checkpoint.load_weights(newest)
    assert "stopped and saved; the same command continues it" in printed
    # torchrun prints one of its own about ranks that have not ended with 0.
    assert launcher == TORCHRUN or "Traceback" not in printed, printed
