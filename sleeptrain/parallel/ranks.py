"""Rank and number of processes, from the variables of torchrun and other launchers, or from those of SLURM's srun."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import MutableMapping

from sleeptrain.errors import UserError

LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
OTHERS = {"OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "an MPI launcher", "MV2_COMM_WORLD_SIZE": "mpirun_rsh"}
"""Variables with the number of processes of launchers that set none of the above, by variable."""
PORTS = range(20000, 30000)
"""Ports of jobs: below those that Linux gives to clients (32768 and up)."""


def rank_and_world(environ: MutableMapping[str, str] | None = None) -> tuple[int, int]:
    """Rank and world size from the environment; (0, 1) if it names no launcher.

    Under srun with several tasks RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE are set for torch, and MASTER_ADDR and
    MASTER_PORT where they are not set. Raises UserError if the environment is incomplete, or names several processes in a way that is not known.
    """
    environ = os.environ if environ is None else environ
    if not any(name in environ for name in ("RANK", "WORLD_SIZE")):
        if int(environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
            _translate_slurm(environ)
        elif several := [name for name in OTHERS if environ.get(name, "1") != "1"]:
            raise UserError(
                f"{several[0]} = {environ[several[0]]} (environment): {OTHERS[several[0]]} started several processes, but RANK and "
                "WORLD_SIZE are not set, and each would train alone; start with torchrun, srun or deepspeed"
            )
        else:
            for name, least in (("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1)):
                if name in environ:
                    env_int(name, least, environ=environ)
            return 0, 1
    if missing := [name for name in LAUNCHED if name not in environ]:
        raise UserError(
            f"the environment sets some of RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, but not {', '.join(missing)}: "
            "start with torchrun or set all four, or unset them for one process"
        )
    world = env_int("WORLD_SIZE", 1, environ=environ)
    env_int("MASTER_PORT", 0, 65535, environ=environ)
    if "LOCAL_RANK" in environ:
        env_int("LOCAL_RANK", 0, world - 1, environ=environ)
    if "LOCAL_WORLD_SIZE" in environ:
        env_int("LOCAL_WORLD_SIZE", 1, world, environ=environ)
    return env_int("RANK", 0, world - 1, environ=environ), world


def _translate_slurm(environ: MutableMapping[str, str]) -> None:
    """Set the variables that torch reads from those of a job step of srun.

    The port follows from job and step, so that all tasks know it and jobs on one node take others.
    """
    job, step = (int(environ.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    environ["RANK"], environ["WORLD_SIZE"] = environ["SLURM_PROCID"], environ["SLURM_STEP_NUM_TASKS"]
    environ["LOCAL_RANK"] = environ["SLURM_LOCALID"]
    if "SLURM_STEP_TASKS_PER_NODE" in environ:
        environ["LOCAL_WORLD_SIZE"] = str(
            tasks_by_node(environ["SLURM_STEP_TASKS_PER_NODE"])[int(environ["SLURM_NODEID"])]
        )
    if "MASTER_ADDR" not in environ:
        environ["MASTER_ADDR"] = _first_node(environ)
    environ.setdefault("MASTER_PORT", str(PORTS[(job * 7 + step) % len(PORTS)]))


def tasks_by_node(text: str) -> list[int]:
    """The tasks of every node as SLURM writes them: `4(x2),3` is 4, 4, 3."""
    found: list[int] = []
    for part in text.split(","):
        tasks, _, nodes = part.rstrip(")").partition("(x")
        found += [int(tasks)] * int(nodes or 1)
    return found


def _first_node(environ: MutableMapping[str, str]) -> str:
    """An address of the first node of a job step: this machine if it is the only one."""
    if environ.get("SLURM_STEP_NUM_NODES", "1") == "1":
        return "127.0.0.1"
    nodes = environ["SLURM_STEP_NODELIST"]
    name = _scontrol("show", "hostnames", nodes).split()[0]
    try:
        socket.getaddrinfo(name, None)
    except socket.gaierror:  # names of nodes need not be names of hosts
        address = re.search(r"NodeAddr=(\S+)", _scontrol("--oneliner", "show", "node", name))
        if address is None:
            raise UserError(
                f"SLURM_STEP_NODELIST = {nodes} (environment): {name} has no address; set MASTER_ADDR"
            ) from None
        return address[1]
    return name


def _scontrol(*words: str) -> str:
    try:
        return subprocess.run(["scontrol", *words], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"scontrol {' '.join(words)} does not work here ({error}); set MASTER_ADDR to an address of the first node"
        ) from None


def env_int(name: str, least: int, most: int | None = None, *, environ: MutableMapping[str, str] | None = None) -> int:
    """The integer in an environment variable. Raises UserError if it is not an integer from `least` to `most`."""
    text = (os.environ if environ is None else environ)[name]
    try:
        value = int(text)
    except ValueError:
        raise UserError(f"{name} = {json.dumps(text)} (environment): expected a whole number") from None
    if value < least or (most is not None and value > most):
        wanted = f"at least {least}" if most is None else f"from {least} to {most}"
        raise UserError(f"{name} = {value} (environment): must be {wanted}")
    return value
