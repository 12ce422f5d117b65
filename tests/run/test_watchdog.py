"""Heartbeats: what they show of ranks that stand elsewhere or do not run, and the stacks of a process that holds the global lock."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sleeptrain.run.watchdog import HEARTBEATS, Watchdog, _ranges


def test_one_process_has_no_heartbeat(tmp_path: Path) -> None:
    with Watchdog(tmp_path, 0, 1, 600) as alone:
        alone.beat(1, "computing")
        assert alone.describe() == ""
    assert not list(tmp_path.iterdir())


def test_ranks_at_one_place_need_no_words(tmp_path: Path) -> None:
    with Watchdog(tmp_path, 0, 2, 600) as first, Watchdog(tmp_path, 1, 2, 600) as second:
        assert first.describe() == second.describe() == ""
    assert not list(tmp_path.iterdir())


def test_ranks_that_stand_elsewhere_and_ranks_that_do_not_run_are_told(tmp_path: Path) -> None:
    """The heartbeat of rank 2 is older than that of rank 0 by more than four intervals; rank 3 has none."""
    with Watchdog(tmp_path, 2, 4, 600) as third:
        third.beat(7, "saving")
        third._write()
        stopped = tmp_path / HEARTBEATS / "rank-00002.json"
        with Watchdog(tmp_path, 1, 4, 600), Watchdog(tmp_path, 0, 4, 600) as first:
            first.beat(8, "reading data")
            assert first.describe() == (
                "rank 3 does not run; rank 0: reading data, step 8; rank 1: starting, step 0; rank 2: saving, step 7"
            )
            now = (tmp_path / HEARTBEATS / "rank-00000.json").stat().st_mtime
            os.utime(stopped, (now - 119, now - 119))
            assert "rank 2: saving, step 7" in first.describe()
            os.utime(stopped, (now - 121, now - 121))
            assert "rank 2 does not run (it was last saving, step 7)" in first.describe()
            assert first.lost() == "rank 3 does not run"
            os.utime(stopped, (now - 601, now - 601))
            assert first.lost() == "rank 2 does not run (it was last saving, step 7); rank 3 does not run"
            stopped.write_text("{")
            assert "rank 2: unknown" in first.describe()


@pytest.mark.parametrize(("ranks", "text"), [([3], "3"), ([0, 1, 2, 5], "0-2, 5"), ([1, 3, 5, 6], "1, 3, 5-6")])
def test_ranges(ranks: list[int], text: str) -> None:
    assert _ranges(ranks) == text


STUCK = """
import ctypes, sys
from pathlib import Path
from sleeptrain.run.watchdog import Watchdog

def stuck():
    ctypes.PyDLL(None).sleep(3)  # PyDLL keeps Python's global lock

with Watchdog(Path(sys.argv[1]), 1, 2, 2.0) as watchdog:
    watchdog.beat(5, "computing")
    stuck()
"""


def test_a_process_that_holds_the_global_lock_dumps_its_stacks(tmp_path: Path) -> None:
    made = subprocess.run([sys.executable, "-c", STUCK, str(tmp_path)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    stacks = tmp_path / HEARTBEATS / "rank-00001.stacks"
    assert "in stuck" in stacks.read_text() and not (tmp_path / HEARTBEATS / "rank-00001.json").exists()
    with Watchdog(tmp_path, 1, 2, 600):
        pass
    assert "in stuck" in stacks.read_text(), "a run that continues keeps them"
