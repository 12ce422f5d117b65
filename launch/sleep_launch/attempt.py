"""Decides how a job of SLURM goes on: after the check of its nodes, and after its training has ended.

`python -m sleep_launch.attempt begin|end ...`, which the job script runs, prints one decision on standard output: `go`,
`end STATUS`, or `again SECONDS [NODES]`, which requeues the job, not before SECONDS and not on NODES. srun replaces the exit status of
ranks, so that the decision follows from files: `outcome.json` of the run, its checkpoints, and the job's earlier attempts.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sleep_launch.verdict import judge, table

REFUSED = 2
"""Exit status of a command whose request is wrong: another start would end alike."""
CONTINUE = 75
SOONEST_S = 15
"""Least delay of a start. SLURM makes a start wait 120 s whose time has passed when the job has left its nodes."""


@dataclass(frozen=True)
class Attempts:
    """The starts of one job, a JSON object per line; a requeued job keeps its file."""

    path: Path
    job: str
    """The id of the job. Attempts of other jobs on the same run do not count."""

    def read(self) -> list[dict[str, Any]]:
        """The attempts of this job, oldest first. A line that a killed process has cut off is left out."""
        found = []
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return [each for each in found if each.get("job") == self.job]

    def add(self, **values: Any) -> None:
        """Append an attempt, on a line of its own also behind one that was cut off."""
        whole = not self.path.exists() or self.path.read_text()[-1:] in ("", "\n")
        with self.path.open("a") as file:
            file.write("" if whole else "\n")
            file.write(json.dumps({"job": self.job, "time": round(time.time(), 3), **values}) + "\n")


def begin(attempts: Attempts, run: Path, checks: Path, nodes: list[str], limits: tuple[int, int]) -> str:
    """The decision after preflight: `go` if every node passes. `limits`: starts without a new checkpoint, and the delay in seconds."""
    found = judge(checks, nodes)
    _say(table(found))
    bad = sorted(name for name, reasons in found.items() if reasons)
    before = attempts.read()
    if not bad:
        attempts.add(event="begin", nodes=nodes, step=newest_step(run), outcome=_outcome_stamp(run))
        return "go"
    if len(bad) == len(nodes) and len(nodes) > 1:
        _say("launch: every node fails preflight, so that other nodes would not help; the job ends")
        return "end 1"
    excluded = sorted({*bad, *(name for each in before for name in each.get("excluded", []))})
    attempts.add(event="preflight", nodes=nodes, step=newest_step(run), excluded=excluded)
    return _again(attempts, newest_step(run), limits, f"preflight excludes {', '.join(bad)}", ",".join(excluded), 0)


def end(attempts: Attempts, run: Path, status: int, limits: tuple[int, int]) -> str:
    """The decision after training, whose srun has ended with `status`."""
    started = [each for each in attempts.read() if each["event"] == "begin"]
    stamp = started[-1]["outcome"] if started else None
    outcome = _read_outcome(run) if _outcome_stamp(run) != stamp else {}
    state, step = outcome.get("state"), newest_step(run)
    if state == "done":
        return "end 0"
    if state == "failed" or (not outcome and status == REFUSED):
        _say(f"launch: training has failed (status {status}); its message is above; the job ends")
        return f"end {REFUSED if status == REFUSED else 1}"
    if state == "stopped" and outcome.get("by") == "file":
        _say("launch: the run was asked to stop; the job ends. `sleeptrain launch` with the same words continues it")
        return f"end {CONTINUE}"
    what = "saved and stopped" if state == "stopped" else f"was ended (status {status})"
    return _again(attempts, step, limits, f"training {what}; newest checkpoint: step {step}")


def _again(
    attempts: Attempts, step: int, limits: tuple[int, int], why: str, exclude: str = "", delay: int | None = None
) -> str:
    """Another start: at once after a new checkpoint, later and later without one, and none after too many."""
    limit, pause = limits
    without = 0
    for each in reversed(attempts.read()):
        if each["step"] < step:
            break
        without += 1
    if without >= limit:
        _say(f"launch: {why}. {without} starts without a new checkpoint (restart.limit is {limit}): the job ends")
        return f"end {CONTINUE}"
    seconds = max(SOONEST_S, delay if delay is not None else pause * 2 ** (without - 1) if without else 0)
    _say(f"launch: {why}. The job is requeued and starts again in {seconds} s or later")
    return f"again {seconds} {exclude}".rstrip()


def newest_step(run: Path) -> int:
    """The step of the newest complete checkpoint; 0 without one."""
    names = [path.parent.name.removeprefix("step-") for path in run.glob("checkpoints/step-*/checkpoint.json")]
    return max((int(name) for name in names if name.isdecimal()), default=0)


def _outcome_stamp(run: Path) -> int | None:
    """When outcome.json was last written; an attempt that ends before it trains leaves that of an earlier one."""
    path = run / "outcome.json"
    return path.stat().st_mtime_ns if path.exists() else None


def _read_outcome(run: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((run / "outcome.json").read_text()))
    except (OSError, ValueError):
        return {}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Read the job script's words and print the decision."""
    parser = argparse.ArgumentParser(prog="sleep_launch.attempt", description=__doc__)
    parser.add_argument("event", choices=["begin", "end"])
    for name in ("job", "run", "checks"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("index", "limit", "delay"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--nodes", default="")
    parser.add_argument("--status", type=int, default=0)
    args = parser.parse_args()
    attempts = Attempts(args.job / f"attempts-{args.index}.jsonl", os.environ.get("SLURM_JOB_ID", "0"))
    limits = (args.limit, args.delay)
    if args.event == "begin":
        print(begin(attempts, args.run, args.checks, args.nodes.split(","), limits))
    else:
        print(end(attempts, args.run, args.status, limits))


if __name__ == "__main__":
    main()
