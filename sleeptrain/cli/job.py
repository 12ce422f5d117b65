"""`sleeptrain job`: the jobs of SLURM that train runs: their state, their logs, and how to end them."""

from __future__ import annotations

import argparse
import json
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleeptrain.cli.help import add_command
from sleeptrain.errors import UserError

if TYPE_CHECKING:
    from sleep_launch.submit import SubmittedJob

EXAMPLES = {
    "job": ["sleeptrain job status runs/hybrid-1b", "sleeptrain job cancel runs/hybrid-1b"],
    "status": ["sleeptrain job status runs/hybrid-1b", "sleeptrain job status runs/* --json"],
    "logs": ["sleeptrain job logs runs/hybrid-1b --lines 100"],
    "cancel": ["sleeptrain job cancel runs/hybrid-1b", "sleeptrain job cancel runs/hybrid-1b --now"],
}


def add(subparsers: Any) -> None:
    """Add this command to the program's parser."""
    parser = add_command(
        subparsers, "job", "show or cancel submitted jobs",
        "Show or cancel what `sleeptrain launch` has submitted. A job is named by its run folder.", EXAMPLES["job"],
    )  # fmt: skip
    actions = parser.add_subparsers(title="actions", dest="action", required=True, metavar="ACTION")
    status = add_command(
        actions, "status", "state of jobs and their runs",
        "Print the state of the job in SLURM's queue, of its run, its last step and speed.", EXAMPLES["status"],
    )  # fmt: skip
    status.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder, or the folder of a study")
    status.add_argument("--json", action="store_true", help="print JSON")
    status.set_defaults(run=run_status)
    logs = add_command(actions, "logs", "the end of a job's log", "Print the end of a job's log.", EXAMPLES["logs"])
    logs.add_argument("run_folder", type=Path, metavar="RUN", help="a run folder")
    logs.add_argument("--lines", type=int, default=40, metavar="N", help="lines to print (default: 40)")
    logs.set_defaults(run=run_logs)
    cancel = add_command(
        actions, "cancel", "end a job",
        "Ask the run of a job to stop: it saves after its step, and the job ends without being requeued. A job that waits\n"
        "is taken out of the queue, also where others of the same array run.", EXAMPLES["cancel"],
    )  # fmt: skip
    cancel.add_argument("run_folder", type=Path, metavar="RUN", help="a run folder, or the folder of a study")
    cancel.add_argument("--now", action="store_true", help="end the job at once, without a save")
    cancel.set_defaults(run=run_cancel)


def run_status(args: argparse.Namespace) -> int:
    """Print a row for every run of every job; returns 0."""
    rows = [row for folder in args.runs for row in _rows(_job(folder))]
    if args.json:
        print(json.dumps(rows, indent=1))
        return 0
    from sleeptrain.evaluate.table import print_table

    columns = ("run", "job", "in the queue", "run is", "step", "tokens/s", "starts")
    print_table(columns, [[str(row[name]) if row[name] is not None else "" for name in columns] for row in rows])
    return 0


def run_logs(args: argparse.Namespace) -> int:
    """Print the end of each log of a job; returns 0."""
    job = _job(args.run_folder)
    pattern = Path(job.log)
    logs = sorted(pattern.parent.glob(pattern.name))
    if not logs:
        raise UserError(
            f"job {job.number} has written no log yet ({job.log}); it is {job.state() or 'not in the queue'}"
        )
    for log in logs:
        if len(logs) > 1:
            print(f"==> {log}")
        with log.open(errors="replace") as file:
            print("".join(deque(file, max(args.lines, 0))), end="")
    return 0


def run_cancel(args: argparse.Namespace) -> int:
    """Stop the runs of a job, or end it; returns 0."""
    from sleeptrain.run.stop import STOP_FILE

    job = _job(args.run_folder)
    rows = job.rows()
    running = [row["index"] for row in rows if row["state"] == "running"]
    waiting = [row["index"] for row in rows if row["state"] != "running"]
    if not rows:
        print(f"job {job.number} is not in the queue any more")
        return 0
    if args.now or not running:
        job.cancel()
        print(f"job {job.number} is cancelled")
        return 0
    # Those that wait first, before they begin. A run that has ended gets no file: it would stop when it is trained further.
    if waiting:
        job.cancel(waiting)
    for index in running:
        run = Path(job.runs[int(index) if index.isdecimal() else 0])
        run.mkdir(parents=True, exist_ok=True)  # of a job that has just begun
        (run / STOP_FILE).touch()
    saves, it = (
        ("1 run saves after its step and ends", "it")
        if len(running) == 1
        else (f"{len(running)} runs save after their step and end", "them")
    )
    print(f"job {job.number}: {saves}; --now ends {it} without a save")
    if waiting:
        print(f"job {job.number}: {len(waiting)} that wait are cancelled")
    return 0


def _job(folder: Path) -> SubmittedJob:
    from sleep_launch.submit import last_job

    job = last_job(folder)
    if job is None:
        raise UserError(f"{folder}: no job of SLURM was submitted for it; `sleeptrain launch` submits one")
    return job


def _rows(job: SubmittedJob) -> list[dict[str, Any]]:
    """What is known of each run of a job."""
    from sleeptrain.run.outcome import read_outcome

    queued = {row["index"]: row for row in job.rows()}
    rows = []
    for index, run in enumerate(job.runs):
        row = queued.get(str(index), queued.get("N/A"))
        folder = Path(run)
        outcome, last = read_outcome(folder), _last_metrics(folder / "metrics.jsonl")
        attempts = Path(job.folder) / f"attempts-{index}.jsonl"
        state = outcome.get("state")
        rows.append(
            {
                "run": run,
                "job": job.number,
                "in the queue": _told(row),
                # A killed run leaves `running` in its file.
                "run is": "killed" if state == "running" and row is None else state,
                "step": last.get("step"),
                "tokens/s": round(last["tokens_per_second"]) if "tokens_per_second" in last else None,
                "starts": len(attempts.read_text().splitlines()) if attempts.exists() else 0,
            }
        )
    return rows


def _told(row: dict[str, str] | None) -> str:
    if row is None:
        return "no"
    return row["state"] + (f" ({row['reason']})" if row["reason"] else f" on {row['nodes']}, {row['left']} left")


def _last_metrics(path: Path) -> dict[str, Any]:
    """The last whole row of metrics; the file may be long."""
    if not path.exists():
        return {}
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 16)))
        lines = file.read().splitlines()
    for line in reversed(lines):
        try:
            return dict(json.loads(line))
        except ValueError:
            continue
    return {}
