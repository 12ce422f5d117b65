"""Jobs of SLURM: their folders, submitting them, asking for their state, cancelling them."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sleep_launch.script import THEN, JobScript, render, render_last

LAUNCH, RECORD, SCRIPT, CODE = "launch", "launch.json", "job.sh", "code"
LAST_SCRIPT = "last.sh"
REVISION = "REVISION"
PACKAGES = ("sleeptrain", "sleep_kernels", "sleep_data", "sleep_launch")
"""What a job runs from a copy of its own."""
ASK_S = 60.0
"""Seconds that a command of SLURM may take."""
FULL = "temporarily unable to accept job"
"""What sbatch says before it sleeps and tries again."""
KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")
"""Variables that sbatch itself needs: where the cluster is, and who asks."""


class SlurmError(Exception):
    """A command of SLURM that is missing or has failed; the message is shown as it stands."""


@dataclass(frozen=True)
class SubmittedJob:
    """A job that was submitted, as launch.json in its folder records it."""

    number: str
    """SLURM's id of the job."""
    folder: str
    runs: tuple[str, ...]
    log: str

    def state(self) -> str:
        """SLURM's states of the job or of the jobs of its array, with the reasons of those that wait; empty once it has left the queue."""
        rows = self.rows()
        return ", ".join(dict.fromkeys(row["state"] + (f" ({row['reason']})" if row["reason"] else "") for row in rows))

    def rows(self) -> list[dict[str, str]]:
        """A row for each job in the queue: index in its array, state, reason, seconds left, nodes."""
        words = ["squeue", "--noheader", "--array", f"--jobs={self.number}", "--format=%K|%T|%r|%L|%N"]
        done = _ask(words, unknown_is_gone=True)
        rows = []
        for line in done.splitlines():
            index, state, reason, left, nodes = line.split("|", 4)
            if state in FINAL:
                continue
            plain = "" if reason == "None" else reason
            rows.append({"index": index, "state": state.lower(), "reason": plain, "left": left, "nodes": nodes})
        return rows

    def cancel(self, indices: Sequence[str] = ()) -> None:
        """End the job, or the jobs of its array with these indices, at once, without a save where they run."""
        _ask(["scancel", *([f"{self.number}_{index}" for index in indices] or [self.number])])


FINAL = (
    "COMPLETED",
    "CANCELLED",
    "FAILED",
    "TIMEOUT",
    "NODE_FAIL",
    "PREEMPTED",
    "OUT_OF_MEMORY",
    "DEADLINE",
    "BOOT_FAIL",
)
"""States of jobs that squeue still shows for some minutes."""


def free_folder(parent: Path) -> Path:
    """The folder of the next job of a run or a study: launch/1, launch/2, ... below its own."""
    taken = [int(path.name) for path in (parent / LAUNCH).glob("*") if path.name.isdecimal()]
    return parent / LAUNCH / str(max(taken, default=0) + 1)


def last_job(parent: Path) -> SubmittedJob | None:
    """The job that was submitted last for a run or a study. A folder without a record is of a job that was not submitted."""
    records = [path for path in (parent / LAUNCH).glob(f"*/{RECORD}") if path.parent.name.isdecimal()]
    if not records:
        return None
    body = json.loads(max(records, key=lambda path: int(path.parent.name)).read_text())
    return SubmittedJob(**{**body, "runs": tuple(body["runs"])})


def prepare(job: JobScript, recipes: Sequence[str], revision: str | None, last: Sequence[str] = ()) -> None:
    """Write the job's folder: a copy of the code, the recipe of every run and what follows it, the script. Written beside its place and
    renamed.

    `last`: words of sleeptrain that a job of its own runs once all jobs of an array have ended. `revision`: that of the code, which a copy cannot ask git for.
    """
    folder = Path(job.folder)
    staged = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    for package in PACKAGES:
        copy_package(package, staged / CODE)
    if revision is not None:
        (staged / CODE / "sleeptrain" / REVISION).write_text(f"{revision}\n")
    for index, recipe in enumerate(recipes):
        (staged / f"recipe-{index}.yaml").write_text(recipe)
    for index, words in enumerate(job.then):
        (staged / f"{THEN}-{index}").write_text("".join(f"{word}\0" for word in words))
    (staged / "nodes").mkdir()
    (staged / SCRIPT).write_text(render(job))
    if last:
        (staged / LAST_SCRIPT).write_text(render_last(job, last))
    staged.rename(folder)


def copy_package(package: str, target: Path) -> None:
    """Copy an installed package, and the shipped configurations with sleeptrain."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).parent
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(source, target / package, ignore=ignore)
    configs = source.parent / "configs"
    if package == "sleeptrain" and not (target / package / "configs").exists():
        shutil.copytree(configs, target / package / "configs", ignore=ignore)


def submit(job: JobScript, after: str | None = None) -> SubmittedJob:
    """Hand a prepared job to sbatch. If that fails, the job's folder is removed. Raises SlurmError with sbatch's message.

    `after`: a job of SLURM after whose end without error this one starts.
    """
    folder = Path(job.folder)
    pattern = "log-%A_%a.txt" if job.array else "log.txt"
    try:
        number = _submit(folder / SCRIPT, job.workdir, pattern, _after(after) if after else None)
    except SlurmError:
        shutil.rmtree(folder)
        raise
    submitted = SubmittedJob(
        number, str(folder), job.runs, str(folder / pattern.replace("%A", number).replace("%a", "*"))
    )
    staged = folder / f"{RECORD}.tmp"
    staged.write_text(json.dumps(asdict(submitted), indent=1) + "\n")
    staged.replace(folder / RECORD)
    # After the record: the array is in the queue, whether or not a job behind it is refused.
    if (folder / LAST_SCRIPT).exists():
        _submit(folder / LAST_SCRIPT, job.workdir, "last.txt", f"afterany:{number}")
    return submitted


def _after(job: str) -> str:
    """A dependency on the end without error of a job that SLURM knows. Raises SlurmError for another one.

    sbatch (22.05) takes a dependency on a number that it does not know as met, and the job starts at once.
    """
    states = _ask(
        ["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T"], unknown_is_gone=True
    ).split()
    if not states:
        raise SlurmError(
            f"--after {job}: SLURM does not know this job, so that nothing would be waited for. It forgets a job some minutes after its "
            "end (MinJobAge): leave --after out if the job has ended without error"
        )
    if failed := sorted({*states} & {*FINAL} - {"COMPLETED"}):
        raise SlurmError(f"--after {job}: that job has ended as {', '.join(failed)}; this one would never start")
    return f"afterok:{job}"


def _submit(script: Path, workdir: str, log: str, dependency: str | None) -> str:
    """The number of a script's job, which writes `log` beside the script."""
    output = f"{script.parent.as_posix().replace('%', '%%')}/{log}"
    words = ["sbatch", "--parsable", f"--chdir={workdir}", f"--output={output}"]
    printed = _ask([*words, *([f"--dependency={dependency}"] if dependency else []), str(script)], _environment())
    return printed.strip().partition(";")[0]  # with the cluster's name behind it where there are several


def _environment() -> dict[str, str]:
    """The environment of sbatch; inside a job, without the variables of that job.

    They would go along to the new job, whose srun takes them for options. SLURM_DISTRIBUTION of an interactive shell, for one, puts
    ranks 0 and 1 on different nodes.
    """
    if "SLURM_JOB_ID" not in os.environ:
        return dict(os.environ)
    return {
        name: value for name, value in os.environ.items() if name in KEPT or not name.startswith(("SLURM_", "SRUN_"))
    }


def _ask(words: list[str], environment: dict[str, str] | None = None, unknown_is_gone: bool = False) -> str:
    """The output of a command of SLURM; raises SlurmError. `unknown_is_gone`: nothing, for a job that SLURM has forgotten."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=ASK_S, check=False, env=environment)
    except FileNotFoundError:
        raise SlurmError(f"{words[0]} is not on PATH: SLURM's commands are not installed here; run this on a login node") from None  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise SlurmError(_no_answer(words[0], (error.stderr or b"").decode(errors="replace"))) from None
    if done.returncode == 0:
        return done.stdout
    message = _message(words[0], done.stderr)
    if unknown_is_gone and "Invalid job id" in message:
        return ""
    raise SlurmError(f"{words[0]}: {message or f'exit status {done.returncode}'}")


def _message(program: str, printed: str) -> str:
    """What a command of SLURM has printed as an error, in one line."""
    return re.sub(rf"^{program}: (error: )?", "", printed.strip(), flags=re.MULTILINE).replace("\n", "; ")


def _no_answer(program: str, printed: str) -> str:
    """Why a command that had to be ended gave no answer. sbatch itself tries for two minutes while the queue is full."""
    message = _message(program, printed)
    if FULL in message:
        return f"{program}: SLURM takes no further job now: its queue is full (MaxJobCount of slurm.conf); submit again when jobs have ended"
    return f"{program} has not answered in {ASK_S:.0f} s{f' ({message})' if message else ''}; ask again later"
