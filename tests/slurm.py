"""A real SLURM of virtual nodes on this machine: munged, slurmctld and a slurmd for each node, in a folder of their own."""

from __future__ import annotations

import getpass
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from tests.system import needs_system

WAIT = 60.0
"""Timeout in seconds for a state of nodes or jobs; only a hang takes that long."""
PROGRAMS = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "srun": "slurm-client"}
"""What a cluster runs, and the Debian package of each."""
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=100000,sched_interval=2
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=10
MaxJobCount={jobs}
InactiveLimit=0
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=2 Sockets=1 CoresPerSocket=2 ThreadsPerCore=1 RealMemory=4000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """A context manager: daemons run inside the `with` block, and end with the process that started them at the latest."""

    def __init__(self, folder: Path, nodes: int = 2, jobs: int = 10_000) -> None:
        """`jobs`: how many it knows at most, those that have ended in the last minutes included; 10,000 is SLURM's default."""
        self.folder, self.nodes, self._jobs = folder, nodes, jobs
        self.environ = {**os.environ, "OMP_NUM_THREADS": "1", "SLURM_CONF": str(folder / "slurm.conf")}
        """The environment of srun, sbatch, squeue and so on."""
        self._programs = {name: needs_system(name, package=package) for name, package in PROGRAMS.items()}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Cluster:
        ports = _free_ports(1 + self.nodes)
        for name in ("state", *(f"spool-n{node + 1}" for node in range(self.nodes))):
            (self.folder / name).mkdir(parents=True)
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
        values = {
            "host": socket.gethostname(),
            "user": getpass.getuser(),
            "folder": self.folder,
            "ports": ports,
            "jobs": self._jobs,
        }
        config = CONFIG.format(**values, nodes=self.nodes, first=ports[1], last=ports[-1])
        (self.folder / "slurm.conf").write_text(config)
        socket_path = self.folder / "munge.socket"
        munge = [f"--{option}={self.folder}/munge.{option.partition('-')[0]}" for option in ("key-file", "pid-file", "log-file", "seed-file")]  # fmt: skip
        try:
            self._start("munged", "--foreground", "--force", f"--socket={socket_path}", *munge)
            _wait_until(socket_path.exists, "munged does not listen")
            self._start("slurmctld", "-D")
            for node in range(self.nodes):
                self._start("slurmd", "-D", "-N", f"n{node + 1}")
            _wait_until(self._all_idle, "the nodes of SLURM are not idle")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._daemons:
            self.run("scancel", "--quiet", f"--user={getpass.getuser()}")
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            daemon.wait(WAIT)

    def run(self, *words: str) -> str:
        """The output of a command of SLURM. Raises AssertionError with its message if it fails."""
        done = subprocess.run(words, env=self.environ, capture_output=True, text=True, timeout=WAIT, check=False)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
        return done.stdout

    def _all_idle(self) -> bool:
        """Whether the controller answers and every node can take jobs."""
        words = ["sinfo", "--noheader", "--Node", "--format=%T"]
        done = subprocess.run(words, env=self.environ, capture_output=True, text=True, timeout=WAIT, check=False)
        return done.stdout.split() == ["idle"] * self.nodes

    def _start(self, program: str, *options: str) -> None:
        setpriv = needs_system("setpriv", package="util-linux")
        words = [setpriv, "--pdeathsig", "KILL", self._programs[program], *options]
        with (self.folder / f"{program}-{len(self._daemons)}.log").open("wb") as log:
            self._daemons.append(subprocess.Popen(words, env=self.environ, stdout=log, stderr=log))


def _wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, f"{what} after {WAIT} s"
        time.sleep(0.05)


def _free_ports(count: int) -> list[int]:
    """Ports that follow each other and are free now."""
    for first in range(16800, 20000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return list(range(first, first + count))
    raise AssertionError("no free ports")
