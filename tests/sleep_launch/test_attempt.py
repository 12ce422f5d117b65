"""How a job goes on: after preflight, and after training has ended in each way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sleep_launch.attempt import Attempts, begin, end

LIMITS = (3, 60)


class Run:
    """A run folder with checkpoints and an outcome, and the attempts of its job."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.attempts, self.checks = (
            folder / "run",
            Attempts(folder / "attempts.jsonl", "7"),
            folder / "checks",
        )
        for path in (self.folder, self.checks):
            path.mkdir()
        self.result("n1")
        self.result("n2")

    def result(self, node: str, *failures: str) -> None:
        body = {
            "node": node, "rank": int(node[1:]), "tasks": 1, "clock": 0, "facts": {}, "failures": failures, "speeds": {},
            "judged": False, "group": None,
        }  # fmt: skip
        (self.checks / f"rank-{node}.json").write_text(json.dumps(body))

    def saves(self, step: int) -> None:
        checkpoint = self.folder / "checkpoints" / f"step-{step:08}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "checkpoint.json").touch()

    def ends(self, status: int, **outcome: Any) -> str:
        """Begin on two good nodes, leave an outcome, end."""
        assert begin(self.attempts, self.folder, self.checks, ["n1", "n2"], LIMITS) == "go"
        if outcome:
            (self.folder / "outcome.json").write_text(json.dumps(outcome))
        return end(self.attempts, self.folder, status, LIMITS)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.mark.parametrize(
    ("status", "outcome", "decision"),
    [
        (0, {"state": "done"}, "end 0"),
        (143, {"state": "done"}, "end 0"),  # srun's status is not that of the ranks
        (1, {"state": "failed"}, "end 1"),
        (2, {}, "end 2"),
        (75, {"state": "stopped", "by": "file"}, "end 75"),
        (75, {"state": "stopped", "by": "signal"}, "again 60"),
        (137, {"state": "running"}, "again 60"),
        (1, {}, "again 60"),  # before it trained: a node or the network
    ],
)
def test_ends(run: Run, status: int, outcome: dict[str, Any], decision: str) -> None:
    assert run.ends(status, **outcome) == decision


def test_an_old_outcome_is_not_that_of_this_start(run: Run) -> None:
    (run.folder / "outcome.json").write_text(json.dumps({"state": "done"}))
    assert run.ends(1) == "again 60"


def test_starts_without_a_new_checkpoint_wait_longer_and_end(run: Run) -> None:
    """A new checkpoint begins the count again, and makes the next start wait for nothing."""
    stopped = {"state": "stopped", "by": "signal"}
    assert [run.ends(75, **stopped) for _ in range(2)] == ["again 60", "again 120"]
    assert begin(run.attempts, run.folder, run.checks, ["n1", "n2"], LIMITS) == "go"
    run.saves(5)
    assert end(run.attempts, run.folder, 75, LIMITS) == "again 15"
    assert [run.ends(137, state="running") for _ in range(3)] == ["again 60", "again 120", "end 75"]
    assert run.ends(0, state="done") == "end 0"


def test_attempts_of_an_earlier_job_do_not_count(run: Run) -> None:
    for _ in range(2):
        run.ends(137, state="running")
    run.attempts = Attempts(run.attempts.path, "8")
    assert run.ends(137, state="running") == "again 60"


def test_a_node_that_fails_is_excluded_with_those_before(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.result("n2", "no space")
    assert begin(run.attempts, run.folder, run.checks, ["n1", "n2"], LIMITS) == "again 15 n2"
    assert "preflight: n2  FAILED\n           no space\n" in capsys.readouterr().err
    run.result("n3", "no space")
    assert begin(run.attempts, run.folder, run.checks, ["n1", "n3"], LIMITS) == "again 15 n2,n3"
    assert begin(run.attempts, run.folder, run.checks, ["n1", "n2"], LIMITS) == "end 75"


def test_nodes_that_all_fail_end_the_job(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for node in ("n1", "n2"):
        run.result(node, "no module cuda")
    assert begin(run.attempts, run.folder, run.checks, ["n1", "n2"], LIMITS) == "end 1"
    assert "every node fails" in capsys.readouterr().err


def test_a_line_that_was_cut_off_is_left_out(run: Run) -> None:
    run.ends(137, state="running")
    run.attempts.path.write_text(run.attempts.path.read_text() + '{"job": "7", "ev')
    assert run.ends(137, state="running") == "again 120"
