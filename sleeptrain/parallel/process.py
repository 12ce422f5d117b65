"""The default process group: a single process, or several under torchrun, srun, `deepspeed` or a launcher that sets RANK."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed.nn  # before the process group exists, see init_distributed

from sleeptrain.errors import ProcessLost, UserError
from sleeptrain.parallel.patches.deepspeed_logging import deepspeed_quiet, silence_deprecation_warnings
from sleeptrain.parallel.patches.deepspeed_shm_op import skip_shm_op_build
from sleeptrain.parallel.patches.deepspeed_timeout import give_new_groups_a_timeout
from sleeptrain.parallel.ranks import rank_and_world


@dataclass(frozen=True)
class Process:
    """The rank and device of this process."""

    rank: int
    world: int
    local_rank: int
    device: torch.device


def init_distributed(timeout: timedelta = timedelta(minutes=10)) -> Process:
    """Create the default process group, with NCCL on GPUs and gloo on CPUs; a second call only returns the same Process.

    `ranks.rank_and_world` reads the launcher's variables; LOCAL_RANK is derived if it is missing. Without them the run is one
    process and opens no port. `timeout` is that of collectives and of the start. Raises UserError for an incomplete
    environment.
    """
    gpu = torch.cuda.is_available()
    rank, world = rank_and_world()
    device = _claim_device(rank)
    with deepspeed_quiet():
        # Imported before the process group exists: functions that torch or DeepSpeed define later have the group as a default
        # argument, and that reference would keep it alive after `shutdown_distributed`.
        import deepspeed.comm

        skip_shm_op_build()
    if not dist.is_initialized():
        if gpu:
            torch.cuda.set_device(device)
        backend = "nccl" if gpu else "gloo"
        if "RANK" in os.environ:
            with _naming_port():
                dist.init_process_group(backend, timeout=timeout, device_id=device if gpu and world > 1 else None)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    silence_deprecation_warnings()
    with deepspeed_quiet():
        if not deepspeed.comm.is_initialized():
            deepspeed.comm.init_distributed(auto_mpi_discovery=False, timeout=timeout, verbose=False)
            give_new_groups_a_timeout(timeout)
    return Process(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_RANK"]), device)


def _claim_device(rank: int) -> torch.device:
    """The device of this process. LOCAL_RANK, which DeepSpeed requires and takes for the number of the GPU, is set to that number."""
    device = local_device(int(os.environ.get("LOCAL_RANK", rank)))
    if device.type == "cuda" or "LOCAL_RANK" not in os.environ:
        os.environ["LOCAL_RANK"] = str(rank if device.index is None else device.index)
    return device


@contextmanager
def _naming_port() -> Iterator[None]:
    """Raises UserError where another program listens on MASTER_PORT."""
    try:
        yield
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise UserError(
            f"MASTER_PORT = {os.environ['MASTER_PORT']} (environment): another program listens on this port; set a free one"
        ) from None


def local_device(local_rank: int = 0) -> torch.device:
    """The device of the process with this local rank: its GPU, or the CPU if there is none.

    `srun --gpus-per-task` shows every task its own GPUs alone, which are numbered from 0 in each of them.
    """
    return (
        torch.device("cuda", local_rank % torch.cuda.device_count())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


@contextmanager
def explain_lost_process(process: Process, describe: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Raises ProcessLost instead of the backend's error if a collective in the block fails because another process is gone.

    `describe` returns what is known of the other processes. It is added to the message, also to that of a ProcessLost.
    """
    try:
        yield
    except ProcessLost as error:
        if known := describe():
            raise type(error)(f"{error}. {known}") from error
        raise
    except RuntimeError as error:
        # gloo raises plain RuntimeError; its message has the path of its source file.
        from_gloo = type(error) is RuntimeError and "/gloo/" in str(error)
        if process.world == 1 or not (from_gloo or isinstance(error, dist.DistBackendError)):
            raise
        known = describe()
        raise ProcessLost(
            f"rank {process.rank} of {process.world} cannot reach another process of this run; the last message of the process "
            f"that ended has the reason; run the same command to continue from the last checkpoint{known and f'. {known}'}"
        ) from error


def shutdown_distributed() -> None:
    """Destroy the process group if there is one; otherwise torch warns at exit."""
    if dist.is_initialized():
        dist.destroy_process_group()
