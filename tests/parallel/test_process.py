"""Joining processes, however they were started; and the helper that starts them for tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from sleeptrain.config.errors import UserError
from sleeptrain.parallel import process as process_module
from sleeptrain.parallel.process import (
    Process,
    ProcessLost,
    explain_lost_process,
    init_distributed,
    shutdown_distributed,
)
from tests.distributed import run


def join(fail: int | None = None) -> tuple[Process, float]:
    process = init_distributed()
    assert init_distributed() == process
    if process.rank == fail:
        raise ValueError("this one is at fault")
    value = torch.tensor(float(process.rank + 1))
    dist.all_reduce(value)
    return process, value.item()


def test_several_processes_join_and_the_results_are_in_order_of_rank() -> None:
    cpu = torch.device("cpu")
    assert run(join, 2) == [(Process(0, 2, 0, cpu), 3.0), (Process(1, 2, 1, cpu), 3.0)]


def test_the_rank_at_fault_is_shown_and_not_the_one_that_waited_for_it() -> None:
    with pytest.raises(AssertionError, match=r"(?s)rank 1 of 2 failed.*ValueError: this one is at fault"):
        run(join, 2, 1)


def test_half_an_environment_is_a_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="but not MASTER_ADDR, MASTER_PORT"):
        process_module._numbers()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"RANK": "zero"}, r'RANK = "zero" \(environment\): expected a whole number'),
        ({"RANK": "2"}, r"RANK = 2 \(environment\): must be from 0 to 1"),
        ({"RANK": "-1"}, r"RANK = -1 \(environment\): must be from 0 to 1"),
        ({"LOCAL_RANK": "2"}, r"LOCAL_RANK = 2 \(environment\): must be from 0 to 1"),
        ({"WORLD_SIZE": "0"}, r"WORLD_SIZE = 0 \(environment\): must be at least 1"),
        ({"MASTER_PORT": "99999"}, r"MASTER_PORT = 99999 \(environment\): must be from 0 to 65535"),
        ({"MASTER_PORT": ""}, r'MASTER_PORT = "" \(environment\): expected a whole number'),
    ],
)
def test_numbers_that_cannot_be(changes: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in (right | changes).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        init_distributed()


def threads_of_gloo() -> int:
    names = [task / "comm" for task in Path("/proc/self/task").iterdir()]
    return [name.read_text().strip() for name in names if name.exists()].count("pt_gloo_runloop")


def left_behind() -> tuple[int, int]:
    process = init_distributed()
    dist.all_gather_object([None] * process.world, "a tensor that gloo's threads hold on to")
    before = threads_of_gloo()
    shutdown_distributed()
    return before, threads_of_gloo()


@pytest.mark.parametrize("world", [1, 2])
def test_no_thread_outlives_the_group(world: int) -> None:
    """One that lets go of a tensor while Python is being taken down ends the process with SIGABRT."""
    for before, after in run(left_behind, world):
        assert before > 0 and after == 0


def lose_each_other() -> str:
    process = init_distributed()
    dist.barrier()
    if process.rank == 1:
        shutdown_distributed()
        return "gone"
    with pytest.raises(ProcessLost, match="rank 0 of 2 cannot reach another process"):
        with explain_lost_process(process):
            for _ in range(1000):
                dist.all_reduce(torch.ones(1))
    with pytest.raises(RuntimeError, match="my own"), explain_lost_process(process):
        raise RuntimeError("my own")
    return "told"


def test_a_process_that_is_lost_is_told_of() -> None:
    assert run(lose_each_other, 2) == ["told", "gone"]


SCRIPT = """
from sleeptrain.parallel import process as process_module
from sleeptrain.parallel.process import init_distributed, shutdown_distributed
process = init_distributed()
print(f"rank {process.rank} of {process.world}")
shutdown_distributed()
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["none", "torchrun", "deepspeed"])
def test_launchers(tmp_path: Path, launcher: str) -> None:
    script, scripts = tmp_path / "script.py", Path(sys.executable).parent
    script.write_text(SCRIPT)
    start = {
        "none": [sys.executable],
        "torchrun": [str(scripts / "torchrun"), "--standalone", "--nproc_per_node=2"],
        "deepspeed": [str(scripts / "deepspeed"), "--num_gpus", "2"],
    }[launcher]
    done = subprocess.run([*start, str(script)], capture_output=True, text=True, timeout=100, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    world = 1 if launcher == "none" else 2
    for rank in range(world):
        assert f"rank {rank} of {world}" in done.stdout
    if launcher == "none":
        assert (done.stdout, done.stderr) == ("rank 0 of 1\n", "")
