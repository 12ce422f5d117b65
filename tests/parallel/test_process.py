"""Creating and destroying the process group under every launcher, and the helper that starts processes in tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from sleeptrain.errors import ProcessLost, UserError
from sleeptrain.parallel import process, ranks
from sleeptrain.parallel.process import (
    Process,
    explain_lost_process,
    init_distributed,
    shutdown_distributed,
)
from sleeptrain.schedule.schedule import Edge
from tests.distributed import run


def init_and_reduce(fail: int | None = None) -> tuple[Process, float]:
    """This rank's Process and an all-reduced value; the rank `fail` raises instead."""
    process = init_distributed()
    assert init_distributed() == process
    if process.rank == fail:
        raise ValueError("this rank failed")
    value = torch.tensor(float(process.rank + 1))
    dist.all_reduce(value)
    return process, value.item()


def test_processes_form_a_group_and_results_are_ordered_by_rank() -> None:
    cpu = torch.device("cpu")
    assert run(init_and_reduce, 2) == [(Process(0, 2, 0, cpu), 3.0), (Process(1, 2, 1, cpu), 3.0)]


def test_the_error_of_the_failed_rank_is_raised_and_not_that_of_a_waiting_rank() -> None:
    with pytest.raises(AssertionError, match=r"(?s)rank 1 of 2 failed.*ValueError: this rank failed"):
        run(init_and_reduce, 2, 1)


def test_an_incomplete_environment_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="but not MASTER_ADDR, MASTER_PORT"):
        ranks.rank_and_world()


def test_a_port_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        code = "from sleeptrain.parallel.process import init_distributed; init_distributed()"
        environment = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
        )
    assert (
        f"UserError: MASTER_PORT = {port} (environment): another program listens on this port; set a free one"
        in done.stderr
    )


@pytest.mark.parametrize(
    ("seen", "local_rank", "expected"),
    [(8, "5", 5), (1, "5", 0), (2, "5", 1), (4, None, 1), (0, "5", None), (0, None, None)],
)
def test_a_process_takes_a_gpu_that_it_sees(
    seen: int, local_rank: str | None, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`srun --gpus-per-task=1` shows every task one GPU, number 0. DeepSpeed takes LOCAL_RANK for the number of the GPU."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: seen > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: seen)
    monkeypatch.setenv("LOCAL_RANK", local_rank or "")
    if local_rank is None:
        monkeypatch.delenv("LOCAL_RANK")
    device = process._claim_device(13)
    assert device == (torch.device("cpu") if expected is None else torch.device("cuda", expected))
    assert os.environ["LOCAL_RANK"] == str(expected if expected is not None else local_rank or 13)


def test_a_wrong_local_rank_without_a_rank_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("LOCAL_RANK", "abc")
    with pytest.raises(UserError, match=r'LOCAL_RANK = "abc" \(environment\): expected a whole number'):
        ranks.rank_and_world()


@pytest.mark.parametrize(
    ("changes", "message"),
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
def test_invalid_environment_variables_are_named(
    changes: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    valid = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in (valid | changes).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        init_distributed()


def count_gloo_threads() -> int:
    names = [task / "comm" for task in Path("/proc/self/task").iterdir()]
    return [name.read_text().strip() for name in names if name.exists()].count("pt_gloo_runloop")


def gloo_threads_around_shutdown() -> tuple[int, int]:
    """Number of gloo threads before and after the group is destroyed."""
    process = init_distributed()
    dist.all_gather_object([None] * process.world, "a tensor that gloo's threads reference")
    before = count_gloo_threads()
    shutdown_distributed()
    return before, count_gloo_threads()


@pytest.mark.parametrize("world", [1, 2])
def test_no_gloo_thread_outlives_the_group(world: int) -> None:
    """A gloo thread that frees a tensor while the interpreter shuts down ends the process with SIGABRT."""
    for before, after in run(gloo_threads_around_shutdown, world):
        assert before > 0 and after == 0


def lose_a_process() -> str:
    """Rank 1 leaves; rank 0 must get ProcessLost from its next collectives, and its own errors unchanged."""
    process = init_distributed()
    dist.barrier()
    if process.rank == 1:
        shutdown_distributed()
        return "left"
    with pytest.raises(ProcessLost, match="rank 0 of 2 cannot reach another process"):
        with explain_lost_process(process):
            for _ in range(1000):
                dist.all_reduce(torch.ones(1))
    with pytest.raises(RuntimeError, match="unrelated"), explain_lost_process(process):
        raise RuntimeError("unrelated")
    return "explained"


def test_a_collective_with_a_lost_process_raises_process_lost() -> None:
    assert run(lose_a_process, 2) == ["explained", "left"]


SCRIPT = """
from sleeptrain.parallel.process import init_distributed, shutdown_distributed
process = init_distributed()
print(f"rank {process.rank} of {process.world}")
shutdown_distributed()
"""


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param("none", marks=pytest.mark.slow),
        # tests/cli/test_launchers.py trains under them.
        pytest.param("torchrun", marks=pytest.mark.exhaustive),
        pytest.param("deepspeed", marks=pytest.mark.exhaustive),
    ],
)
def test_every_launcher_forms_a_group(tmp_path: Path, launcher: str) -> None:
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


def timeouts(pipe: int) -> list[float]:
    """Seconds that the groups of a mesh with this timeout wait, and those of messages between stages."""
    from datetime import timedelta

    from sleeptrain.execute.p2p import P2PChannels
    from sleeptrain.parallel.config import Mesh
    from sleeptrain.parallel.mesh import init_mesh

    process, mesh = init_distributed(timedelta(seconds=120)), Mesh(pipe=pipe, timeout=120)
    axes = init_mesh(mesh, process.rank, process.world)
    p2p = P2PChannels(axes.pipes, timedelta(seconds=mesh.timeout))
    p2p.open([Edge(0, 1, "forward"), Edge(1, 0, "backward")], process.device)
    groups = [None, axes.pipe.group, axes.data.group, *p2p._groups.values()]
    backends = [(group or dist.group.WORLD)._get_backend(process.device) for group in groups]
    return [backend.options._timeout.total_seconds() for backend in backends]


def test_every_group_waits_as_long_as_the_recipe_says() -> None:
    """torch gives a new group its default of 30 minutes, whatever the timeout of the first one."""
    assert run(timeouts, 2, 2) == [[120.0] * 5] * 2
