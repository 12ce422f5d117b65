"""Cluster files: what a cluster is made of and how its jobs are submitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sleep_launch.cluster import Nodes, Restart, Slurm, Software, problems
from sleeptrain.config import Problem, Resolved
from sleeptrain.errors import UserError
from sleeptrain.plan.hardware import Hardware
from sleeptrain.recipe.kinds import load_file


@dataclass(frozen=True)
class ClusterFile:
    """A cluster file: a YAML file, or the name of one in configs/cluster."""

    slurm: Slurm = field(default_factory=Slurm)
    nodes: Nodes = field(default_factory=Nodes)
    software: Software = field(default_factory=Software)
    restart: Restart = field(default_factory=Restart)
    hardware: Hardware | None = None
    """GPUs and links, for `sleeptrain plan` and to check that a recipe fits; null: unknown."""
    recipe: tuple[str, ...] = ()
    """Changes to every recipe that runs here, such as `data.cache=/scratch/cache`; those of the command line come later."""

    def problems(self) -> list[Problem]:
        """Problems of the sections that job scripts are made from."""
        found = problems(self.slurm, self.nodes, self.software, self.restart)
        return [Problem(path, reason) for path, reason in found]


def load_cluster(name: str, overrides: Sequence[str] = ()) -> Resolved[ClusterFile]:
    """Read a cluster file. Raises UserError that lists every error at once."""
    try:
        return load_file(name, overrides, ClusterFile, "cluster file")
    except UserError as error:
        raise UserError([f"--cluster: {line}" for line in error.errors]) from None


GPU_OPTIONS = ("gres", "gpus", "gpus-per-task", "gpus-per-socket", "tres-per-task")
"""Options of sbatch that request GPUs beside `nodes.gpus`."""


def load_job_cluster(name: str, overrides: Sequence[str] = ()) -> Resolved[ClusterFile]:
    """Read a cluster file from which jobs are made. Raises UserError also where a job would leave GPUs of its nodes idle."""
    resolved = load_cluster(name, overrides)
    cluster = resolved.value
    hardware, nodes = cluster.hardware, cluster.nodes
    requested = nodes.gpus > 0 or any(option in cluster.slurm.options for option in GPU_OPTIONS)
    if hardware is not None and nodes.tasks < hardware.gpus and not requested:
        raise UserError(
            f"--cluster {name}: {resolved.at('nodes.tasks')} and {resolved.at('nodes.gpus')}, and a node has hardware.gpus = "
            f"{hardware.gpus}: the job would request no GPU; give nodes.tasks and nodes.gpus, such as "
            f"nodes: {{tasks: {hardware.gpus}, gpus: {hardware.gpus}}}"
        )
    return resolved


def load_hardware(name: str) -> Hardware:
    """GPUs and links of a cluster file. Raises UserError where it does not name them."""
    hardware = load_cluster(name).value.hardware
    if hardware is None:
        raise UserError(
            f"--cluster {name}: this file has no section hardware; configs/cluster/h100-slurm.yaml shows one"
        )
    return hardware
