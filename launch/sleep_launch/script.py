"""The job scripts: what SLURM runs on the first node of a job, as text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from shlex import quote

from sleep_launch.cluster import Nodes, Restart, Slurm, Software


@dataclass(frozen=True)
class JobScript:
    """What a job script is made from. Paths are absolute and seen by every node."""

    name: str
    """The job's name in the queue."""
    folder: str
    """The job's own folder: script, code, recipes, logs, results of preflight."""
    runs: tuple[str, ...]
    """Run folders, by index."""
    workdir: str
    """The current folder of every task."""
    count: int
    """Number of nodes of a job."""
    lead: int
    """Seconds before the time limit at which ranks get SIGUSR1."""
    space: int
    """Bytes that must be free in a run folder."""
    python: str
    slurm: Slurm
    nodes: Nodes
    software: Software
    restart: Restart
    array: tuple[int, ...] = ()
    """Indices of the runs that the jobs of an array train, one each; empty: a single job trains the first run."""
    then: tuple[tuple[str, ...], ...] = ()
    """By index, words of sleeptrain that one task of a job runs once its run is done; empty: nothing is run then."""


def render(job: JobScript) -> str:
    """The text of a job script. Everything that users name is quoted, so that no character of it is read by the shell."""
    preflight = ["--tasks", str(job.nodes.tasks), "--gpus", str(job.nodes.gpus), "--space", str(job.space)]
    preflight += ["--local", job.nodes.local] if job.nodes.local else []
    return TEMPLATE.format(
        head=_head(_directives(job)),
        **_common(job),
        runs=_line(job.runs),
        exclude=quote(job.slurm.exclude or ""),
        limits=f"--limit {job.restart.limit} --delay {job.restart.delay}",
        preflight=_line(preflight),
        one=ONE,
        finish=FINISH.format(one=ONE, then=THEN) if job.then else 'exit "$value"',
    )


def render_last(job: JobScript, words: Sequence[str]) -> str:
    """The text of a script that runs sleeptrain with these words in one task, for the time when the jobs of an array have ended."""
    slurm = job.slurm
    named = {
        "job-name": f"{job.name}-last",
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "reservation": slurm.reservation,
        "nodes": 1,
        "ntasks-per-node": 1,
        "time": LAST_MINUTES,
        "open-mode": "append",
    }
    return LAST.format(head=_head(_given(named)), **_common(job), words=_line(words))


LAST_MINUTES = 60
"""Time limit of the script that runs last."""
THEN = "then"
"""Files of a job's folder, with the index behind: the words of `JobScript.then`, each ended by a zero byte."""
ONE = "--nodes=1 --ntasks=1 --ntasks-per-node=1"
"""Options of an srun that starts one task."""
SRUN = ("srun", "--wait=0", "--kill-on-bad-exit=0", "--overlap")
"""What starts tasks. Its defaults are those of the cluster's slurm.conf (WaitTime, KillOnBadExit), so that they are given here."""


def _directives(job: JobScript) -> list[str]:
    """Options of sbatch, each a word that `cluster.problems` has checked."""
    slurm, nodes = job.slurm, job.nodes
    named = {
        "job-name": job.name,
        "array": ",".join(map(str, job.array)) or None,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "reservation": slurm.reservation,
        "exclude": slurm.exclude,
        "nodes": job.count,
        "ntasks-per-node": nodes.tasks,
        "gpus-per-node": nodes.gpus or None,
        "cpus-per-task": nodes.cpus,
        "time": slurm.time,
        "signal": f"USR1@{job.lead}",
        "open-mode": "append",
    }
    others = [f"{name}={value}" if value else name for name, value in slurm.options.items()]
    return [*_given(named), "requeue", *others]


def _given(named: Mapping[str, object]) -> list[str]:
    """Options that have a value; the name of a job in characters that every tool of SLURM can show."""
    values = {name: value for name, value in named.items() if value is not None}
    values["job-name"] = re.sub(r"[^A-Za-z0-9_.-]+", "_", str(values["job-name"]))
    return [f"{name}={value}" for name, value in values.items()]


def _head(options: Sequence[str]) -> str:
    return "\n".join(f"#SBATCH --{option}" for option in options)


def _line(words: Sequence[str]) -> str:
    return " ".join(map(quote, words))


def _common(job: JobScript) -> dict[str, str]:
    """What all scripts of a job have: folders, modules and variables, and how a task is started."""
    setup = [f"module load {quote(module)} || {_no_module(module)}" for module in job.software.modules]
    setup += [f"export {name}={quote(value)}" for name, value in job.software.environment.items()]
    if "/" in job.python and not job.software.wrapper:
        setup.append(f"export PATH={quote(job.python.rpartition('/')[0])}:$PATH")
    return {
        "workdir": quote(job.workdir),
        "folder": quote(job.folder),
        "setup": "\n".join(setup) or "# The cluster file names no modules or environment variables.",
        "python": _line([*job.software.wrapper, job.python]),
        "srun": _line([*SRUN, *job.slurm.srun]),
    }


def _no_module(module: str) -> str:
    """Ends the job with a message. Without the module it might train on, slowly or with other libraries."""
    text = f"launch: module load {module} has failed; correct software.modules of the cluster file and launch again"
    return f"{{ echo {quote(text)} >&2; exit 2; }}"


TEMPLATE = """\
#!/usr/bin/env bash
{head}
# Checks the nodes of the job, trains, and requeues the job until the run is done: written by sleeptrain.
# shellcheck disable=SC2016  # the shell must not read a $ in a name
set -uo pipefail
# SIGTERM, which SLURM sends to this script too, must not end it before the job is requeued.
trap : TERM
cd -- {workdir} || exit 2
job={folder}
runs=({runs})
index=${{SLURM_ARRAY_TASK_ID:-0}}
# SLURM_JOB_ID of the job of an array that starts last is the array's, which scontrol takes for all its jobs.
this=${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}${{SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}}
run=${{runs[index]}}
exclude={exclude}
{setup}
export PYTHONPATH=$job/code
# srun has not read it from the job since SLURM 22.05.
[ -z "${{SLURM_CPUS_PER_TASK:-}}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
python=({python})
# --wait, --kill-on-bad-exit: a rank that ends first, with status 75, must not end those that still save.
# --overlap: resources of the step before may not be free yet.
srun=({srun})

# Prints the decision of sleep_launch.attempt: "go", "end STATUS" or "again SECONDS [NODES TO EXCLUDE]".
decide() {{
    "${{srun[@]}}" {one} \\
        "${{python[@]}}" -m sleep_launch.attempt "$@" --job "$job" --index "$index" --run "$run" --checks "$checks" {limits}
}}

follow() {{
    local word value nodes
    read -r word value nodes <<< "$1"
    case $word in
        go) return ;;
        again)
            # SLURM now sends SIGTERM to all that this script runs.
            trap '' TERM
            scontrol requeue "$this" || exit 75
            scontrol update "JobId=$this" "StartTime=now+$value"
            [ -z "$nodes" ] || scontrol update "JobId=$this" "ExcNodeList=${{exclude:+$exclude,}}$nodes"
            exit 75 ;;
        end)
            {finish} ;;
        *) exit 1 ;;
    esac
}}

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd, -)
checks=$job/nodes/$SLURM_JOB_ID-${{SLURM_RESTART_COUNT:-0}}
mkdir -p -- "$run" "$checks" || exit 1
"${{srun[@]}}" "${{python[@]}}" -m sleeptrain preflight "$checks" --run-dir "$run" {preflight}
follow "$(decide begin --nodes "$hosts")"
"${{srun[@]}}" "${{python[@]}}" -m sleeptrain train "$job/recipe-$index.yaml"
status=$?
follow "$(decide end --status "$status")"
"""
FINISH = """\
[ "$value" = 0 ] || exit "$value"
            mapfile -d '' -t words < "$job/{then}-$index" || exit 1
            "${{srun[@]}}" {one} "${{python[@]}}" -m sleeptrain "${{words[@]}}"
            exit $?"""
LAST = """\
#!/usr/bin/env bash
{head}
# Runs when the jobs of an array have ended: written by sleeptrain.
# shellcheck disable=SC2016  # the shell must not read a $ in a name
set -uo pipefail
cd -- {workdir} || exit 2
job={folder}
{setup}
export PYTHONPATH=$job/code
python=({python})
srun=({srun})
"${{srun[@]}}" "${{python[@]}}" -m sleeptrain {words}
"""
