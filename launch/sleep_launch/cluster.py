"""A cluster as plain values: the sections of a cluster file that a job script is made from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_WORD = re.compile(r"[A-Za-z0-9_.,:;=+*/@%&|!?\[\]()-]+")
_OPTION = re.compile(r"[a-z][a-z0-9-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TIME = re.compile(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}")
RENDERED = (
    "job-name", "nodes", "ntasks", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "partition", "account", "qos", "constraint",
    "reservation", "exclude", "time", "signal", "requeue", "no-requeue", "open-mode", "array", "output", "error", "chdir", "dependency",
)  # fmt: skip
"""Options of sbatch that the job script sets from other keys or by itself."""


@dataclass(frozen=True)
class Slurm:
    """What sbatch and srun need to know on this cluster."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    exclude: str | None = None
    """Nodes that no job may use, as SLURM writes them, such as `node[07,12-14]`."""
    time: str = "24:00:00"
    """Time limit of a job. A run that needs longer saves, is requeued and continues."""
    lead: int = 300
    """Least number of seconds before the time limit at which a run is asked to save and stop. It is more where a save was measured to
    take longer."""
    options: dict[str, str] = field(default_factory=dict)
    """Further options of sbatch by long name without dashes, such as `mem: "0"`; an empty text gives an option without value."""
    srun: tuple[str, ...] = ()
    """Options of every srun of the job, such as `--container-image=IMAGE` of Pyxis."""


@dataclass(frozen=True)
class Nodes:
    """What a job takes of every node."""

    tasks: int = 1
    """Tasks of a node. Each is one rank and uses one GPU."""
    gpus: int = 0
    """GPUs that are requested of every node; 0 requests none."""
    cpus: int | None = None
    """CPU cores of every task: one for the rank, one for each of its data workers; null leaves it to SLURM."""
    local: str | None = None
    """A folder on a local disk of every node that must be writable, such as `/scratch/$USER`; variables are those of the node."""


@dataclass(frozen=True)
class Software:
    """How a task finds Python and libraries on a node."""

    modules: tuple[str, ...] = ()
    """Environment modules that are loaded, in order."""
    python: str | None = None
    """The Python of the tasks; null: the one that launches, which nodes must see at the same path."""
    wrapper: tuple[str, ...] = ()
    """Words before every program of a task, such as `[apptainer, exec, --nv, image.sif]`."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of the job, such as `NCCL_SOCKET_IFNAME: ib0`."""


@dataclass(frozen=True)
class Restart:
    """What happens to a job that ends before its run is done."""

    limit: int = 3
    """Starts in a row without a new checkpoint, after which the job ends. Starts that save are not limited."""
    delay: int = 60
    """Seconds before the second start without a new checkpoint; doubled for each further one."""


def time_seconds(text: str) -> int:
    """Seconds of a time as SLURM writes it: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]]."""
    days, dash, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    units = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)
    return int(days or 0) * 86400 + sum(part * unit for part, unit in zip(parts, units, strict=False))


def problems(slurm: Slurm, nodes: Nodes, software: Software, restart: Restart) -> Iterator[tuple[str, str]]:
    """(dotted path, what is wrong) of every value that cannot stand in a job script."""
    for name in ("partition", "account", "qos", "constraint", "reservation", "exclude"):
        value = getattr(slurm, name)
        if value is not None and not _WORD.fullmatch(value):
            yield f"slurm.{name}", "must be one word of letters, digits and the characters that SLURM uses"
    if not _TIME.fullmatch(slurm.time):
        yield "slurm.time", 'must be a time of SLURM: minutes, "hours:minutes:seconds" or "days-hours"'
    elif time_seconds(slurm.time) < 60:
        yield (
            "slurm.time",
            "must be at least a minute; SLURM takes 0 for no limit, and a job needs one to save before it",
        )
    elif not 1 <= slurm.lead <= time_seconds(slurm.time) / 2:
        yield "slurm.lead", f"must be from 1 s to half of the time limit, which is {time_seconds(slurm.time)} s"
    for name, value in slurm.options.items():
        if not _OPTION.fullmatch(name):
            yield "slurm.options", f"{name!r} is not the long name of an option of sbatch, without its dashes"
        elif name in RENDERED:
            yield "slurm.options", f"the job script sets {name} from another key or by itself"
        elif value and not _WORD.fullmatch(value):
            yield "slurm.options", f"the value of {name} must be one word"
    for path, value, least in (
        ("nodes.tasks", nodes.tasks, 1), ("nodes.gpus", nodes.gpus, 0), ("nodes.cpus", nodes.cpus, 1),
        ("restart.limit", restart.limit, 1), ("restart.delay", restart.delay, 0),
    ):  # fmt: skip
        if value is not None and value < least:
            yield path, f"must be at least {least}"
    if 0 < nodes.gpus != nodes.tasks:
        yield (
            "nodes.tasks",
            f"must be nodes.gpus = {nodes.gpus}: each task uses one GPU, and GPUs without a task would be idle",
        )
    for name in software.environment:
        if not _VARIABLE.fullmatch(name):
            yield "software.environment", f"{name!r} is not a name of an environment variable"
