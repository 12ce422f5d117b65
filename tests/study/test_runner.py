"""The runner: what fails is listed and the rest goes on, a signal stops after the command that it reaches, and logs."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

from sleeptrain.study.runner import LOG, run_points
from tests.study.folders import row, write_run


@dataclass
class Scripted:
    """A point whose commands are Python programs."""

    index: int
    folder: Path
    programs: list[str]

    def left(self) -> list[list[str]]:
        return [["python", "-c", program] for program in self.programs]


def run(folder: Path, *programs: list[str]):
    said: list[str] = []
    made = [Scripted(i, folder / str(i), list(p)) for i, p in enumerate(programs)]
    failures, stopped = run_points(made, len(made), said.append)  # type: ignore[arg-type]
    return failures, stopped, said


def test_failures_are_listed_with_the_end_of_their_log(tmp_path: Path) -> None:
    fails = "import sys\nfor i in range(9): print('line', i)\nsys.exit(3)"
    failures, stopped, said = run(
        tmp_path, ["print('one')", fails, "print('never')"], [], ["import sys; print('full'); sys.exit(75)"], ["print('last')"]
    )  # fmt: skip
    assert not stopped
    assert [(f.folder.name, f.status, f.again) for f in failures] == [("0", 3, False), ("2", 75, True)]
    assert failures[0].lines == [f"line {i}" for i in range(4, 9)]
    assert "failed with exit status 3" in str(failures[0]) and "line 8" in str(failures[0])
    assert any("1/4" in line and "failed (3)" in line for line in said) and any("done before" in line for line in said)
    assert "never" not in (tmp_path / "0" / LOG).read_text().replace("print('never')", "")
    assert (tmp_path / "3" / LOG).read_text().endswith("last\n")


def test_a_signal_reaches_the_command_and_no_other_is_begun(tmp_path: Path) -> None:
    asks = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))\n"
        "os.kill(os.getppid(), signal.SIGUSR1)\n"
        "time.sleep(60)"
    )
    before = signal.getsignal(signal.SIGUSR1)
    failures, stopped, said = run(tmp_path, [asks], ["print('next')"])
    assert (failures, stopped) == ([], True)
    assert said[-1].endswith("stopped and saved") and not (tmp_path / "1").exists()
    assert signal.getsignal(signal.SIGUSR1) is before


def test_a_run_that_continues_says_what_all_its_steps_took(tmp_path: Path) -> None:
    """Its last start may have made one step of a day's."""
    write_run(tmp_path / "0", [row(step) for step in range(1, 21)])
    saved = tmp_path / "0" / "checkpoints" / "step-00000019"
    saved.mkdir(parents=True)
    (saved / "checkpoint.json").touch()
    _, _, said = run(tmp_path, ["print('the last step')"], ["print('all steps')"])
    assert said[0].startswith(f"1/2 {tmp_path / '0'}: continuing at step 19, log in ")
    assert said[1].endswith(" s since then; all 20 steps took 40 s") and "done in " in said[1]
    assert ": training, log in " in said[2] and "since" not in said[3]
