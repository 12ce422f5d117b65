"""Ranks from the variables of launchers; those of srun as slurmctld 22.05 sets them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sleeptrain.errors import UserError
from sleeptrain.parallel.ranks import PORTS, rank_and_world, tasks_by_node

STEP = {
    "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}  # fmt: skip


def scontrol(folder: Path, names: str, node: str) -> str:
    """A PATH with a `scontrol` that answers with these names of hosts and this line for a node."""
    program = folder / "scontrol"
    program.write_text(f'#!/bin/sh\ncase "$*" in "show hostnames n[1-2]") printf "{names}";; *) echo "{node}";; esac\n')
    program.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_tasks_of_srun_are_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", scontrol(tmp_path, "localhost\\nn2\\n", ""))
    environ = dict(STEP)
    assert rank_and_world(environ) == (3, 4)
    assert (environ["LOCAL_RANK"], environ["LOCAL_WORLD_SIZE"], environ["MASTER_ADDR"]) == ("1", "2", "localhost")
    assert int(environ["MASTER_PORT"]) in PORTS
    other = STEP | {"SLURM_JOB_ID": "4712"}
    rank_and_world(other)
    assert other["MASTER_PORT"] != environ["MASTER_PORT"]
    assert rank_and_world(environ) == (3, 4), "reading it again changes nothing"


def test_nodes_may_have_different_numbers_of_tasks() -> None:
    assert tasks_by_node("8") == [8] and tasks_by_node("4(x2),3") == [4, 4, 3] and tasks_by_node("7,1") == [7, 1]


def test_a_node_whose_name_is_no_host_is_reached_by_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "NodeName=n1 Arch=x86_64 NodeAddr=10.1.2.3 NodeHostName=vm"
    monkeypatch.setenv("PATH", scontrol(tmp_path, "no-such-host.invalid\\n", line))
    environ = dict(STEP)
    rank_and_world(environ)
    assert environ["MASTER_ADDR"] == "10.1.2.3"


def test_without_scontrol_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"scontrol show hostnames n\[1-2\] does not work here .*; set MASTER_ADDR"):
        rank_and_world(dict(STEP))
    environ = STEP | {"MASTER_ADDR": "10.0.0.1", "LOCAL_RANK": "7"}
    assert rank_and_world(environ) == (3, 4)
    assert (environ["MASTER_ADDR"], environ["LOCAL_RANK"]) == ("10.0.0.1", "1"), "an old local rank is replaced"


def test_a_batch_script_and_one_task_are_one_process() -> None:
    """A batch script has SLURM_PROCID and the number of tasks of its job, and no step."""
    script = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert rank_and_world(script) == (0, 1) and "RANK" not in script
    assert rank_and_world(STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) == (0, 1)
    assert rank_and_world({}) == (0, 1)


def test_variables_of_torchrun_go_before_those_of_srun() -> None:
    """torchrun as the one task of a node."""
    given = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "host", "MASTER_PORT": "5"}
    assert rank_and_world(STEP | given) == (1, 2)


@pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_several_processes_of_an_unknown_launcher_do_not_train_alone(name: str) -> None:
    with pytest.raises(
        UserError, match=rf"{name} = 2 \(environment\): .* each would train alone; start with torchrun, srun"
    ):
        rank_and_world({name: "2"})
    assert rank_and_world({name: "1"}) == (0, 1)


def test_two_tasks_on_a_node_form_a_group() -> None:
    """Two processes with the variables that srun gives them, and no other launcher."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]  # a job number that no other test has
    code = "from sleeptrain.parallel.process import *; p = init_distributed(); print(p.rank, p.world, p.local_rank); shutdown_distributed()"
    tasks = []
    for task in ("0", "1"):
        step = STEP | {"SLURM_JOB_ID": str(number), "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
        environ = os.environ | step | {"SLURM_PROCID": task, "SLURM_LOCALID": task, "OMP_NUM_THREADS": "1"}
        for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            environ.pop(name, None)
        tasks.append(subprocess.Popen([sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, text=True))
    assert sorted(task.communicate(timeout=120)[0] for task in tasks) == ["0 2 0\n", "1 2 1\n"]
