"""The job script: what SLURM runs on the first node of a job, as text."""

from __future__ import annotations

import re
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
    """Run folders. Several make an array of jobs, one for each."""
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


def render(job: JobScript) -> str:
    """The text of a job script. Everything that users name is quoted, so that no character of it is read by the shell."""
    head = "\n".join(f"#SBATCH --{option}" for option in _directives(job))
    wrapper = " ".join(quote(word) for word in (*job.software.wrapper, job.python))
    setup = [f"module load {quote(module)}" for module in job.software.modules]
    setup += [f"export {name}={quote(value)}" for name, value in job.software.environment.items()]
    if "/" in job.python and not job.software.wrapper:
        setup.append(f"export PATH={quote(job.python.rpartition('/')[0])}:$PATH")
    preflight = ["--tasks", str(job.nodes.tasks), "--gpus", str(job.nodes.gpus), "--space", str(job.space)]
    preflight += ["--local", job.nodes.local] if job.nodes.local else []
    return TEMPLATE.format(
        head=head,
        workdir=quote(job.workdir),
        folder=quote(job.folder),
        runs=" ".join(map(quote, job.runs)),
        setup="\n".join(setup) or "# The cluster file names no modules or environment variables.",
        python=wrapper,
        srun=" ".join(["srun", "--wait=0", "--overlap", *map(quote, job.slurm.srun)]),
        exclude=quote(job.slurm.exclude or ""),
        limits=f"--limit {job.restart.limit} --delay {job.restart.delay}",
        preflight=" ".join(map(quote, preflight)),
    )


def _directives(job: JobScript) -> list[str]:
    """Options of sbatch, each a word that `cluster.problems` has checked."""
    slurm, nodes = job.slurm, job.nodes
    named = {
        "job-name": re.sub(r"[^A-Za-z0-9_.-]+", "_", job.name),  # what every tool of SLURM can show
        "array": f"0-{len(job.runs) - 1}" if len(job.runs) > 1 else None,
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
    options = [f"{name}={value}" for name, value in named.items() if value is not None]
    options += ["requeue", *(f"{name}={value}" if value else name for name, value in slurm.options.items())]
    return options


TEMPLATE = """\
#!/usr/bin/env bash
{head}
# Checks the nodes of the job, trains, and requeues the job until the run is done: written by `sleeptrain launch`.
# shellcheck disable=SC2016  # the shell must not read a $ in a name
set -uo pipefail
# SIGTERM, which SLURM sends to this script too, must not end it before the job is requeued.
trap : TERM
cd -- {workdir} || exit 2
job={folder}
runs=({runs})
index=${{SLURM_ARRAY_TASK_ID:-0}}
run=${{runs[index]}}
exclude={exclude}
{setup}
export PYTHONPATH=$job/code
# srun has not read it from the job since SLURM 22.05.
[ -z "${{SLURM_CPUS_PER_TASK:-}}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
python=({python})
# --wait=0: a rank that ends first must not end those that still save. --overlap: resources of the step before may not be free yet.
srun=({srun})

# Prints the decision of sleep_launch.attempt: "go", "end STATUS" or "again SECONDS [NODES TO EXCLUDE]".
decide() {{
    "${{srun[@]}}" --nodes=1 --ntasks=1 --ntasks-per-node=1 \\
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
            scontrol requeue "$SLURM_JOB_ID" || exit 75
            scontrol update "JobId=$SLURM_JOB_ID" "StartTime=now+$value"
            [ -z "$nodes" ] || scontrol update "JobId=$SLURM_JOB_ID" "ExcNodeList=${{exclude:+$exclude,}}$nodes"
            exit 75 ;;
        end) exit "$value" ;;
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
