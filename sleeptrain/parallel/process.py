"""Joins the processes of a run: one on a laptop, or many under torchrun, `deepspeed` or any launcher that sets RANK."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed.nn  # see init_distributed

from sleeptrain.config.errors import UserError
from sleeptrain.parallel.patches.deepspeed_logging import deepspeed_quiet, silence_deprecations
from sleeptrain.parallel.patches.deepspeed_shm_op import skip_shared_memory_operator


@dataclass(frozen=True)
class Process:
    """Where this process stands among all."""

    rank: int
    world: int
    local_rank: int
    device: torch.device


def init_distributed(timeout: timedelta = timedelta(minutes=10)) -> Process:
    """Joins the other processes: NCCL where there is a GPU, else gloo. Calling it again only says where we stand.

    With RANK and WORLD_SIZE set, also needs MASTER_ADDR and MASTER_PORT; LOCAL_RANK is derived where it is missing.
    Without them this is a run of one process and uses no port. Raises UserError for half an environment.
    """
    gpu = torch.cuda.is_available()
    rank, world = _numbers()
    if "LOCAL_RANK" not in os.environ:
        # DeepSpeed reads it from the environment and asserts that it is there.
        os.environ["LOCAL_RANK"] = str(rank % torch.cuda.device_count() if gpu else rank)
    local_rank = int(os.environ["LOCAL_RANK"])
    device = local_device(local_rank)
    with deepspeed_quiet():
        # Before there is a group: functions that are defined later have it as a default argument, and hold it for good.
        import deepspeed.comm

        skip_shared_memory_operator()
    if not dist.is_initialized():
        if gpu:
            torch.cuda.set_device(device)
        backend = "nccl" if gpu else "gloo"
        if "RANK" in os.environ:
            dist.init_process_group(backend, timeout=timeout, device_id=device if gpu and world > 1 else None)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    silence_deprecations()
    with deepspeed_quiet():
        if not deepspeed.comm.is_initialized():
            deepspeed.comm.init_distributed(auto_mpi_discovery=False, timeout=timeout, verbose=False)
    return Process(dist.get_rank(), dist.get_world_size(), local_rank, device)


def local_device(local_rank: int = 0) -> torch.device:
    """The device of one of this machine's processes: its GPU, or the CPU where there is none."""
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


def _numbers() -> tuple[int, int]:
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        return 0, 1
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(
            f"the environment has some of RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, but not {', '.join(missing)}: "
            "start with torchrun or set all four, or unset them for one process"
        )
    world = env_int("WORLD_SIZE", 1)
    env_int("MASTER_PORT", 0, 65535)
    if "LOCAL_RANK" in os.environ:
        env_int("LOCAL_RANK", 0, world - 1)
    return env_int("RANK", 0, world - 1), world


def env_int(name: str, least: int, most: int | None = None) -> int:
    """A whole number from the environment. UserError where it is none, or out of range."""
    said = os.environ[name]
    try:
        found = int(said)
    except ValueError:
        raise UserError(f"{name} = {json.dumps(said)} (environment): expected a whole number") from None
    if found < least or (most is not None and found > most):
        wanted = f"at least {least}" if most is None else f"from {least} to {most}"
        raise UserError(f"{name} = {found} (environment): must be {wanted}")
    return found


class ProcessLost(RuntimeError):
    """Another process of this run has ended, or cannot be reached."""


@contextmanager
def explain_lost_process(process: Process) -> Iterator[None]:
    """A collective that fails inside since another process is gone raises ProcessLost."""
    try:
        yield
    except RuntimeError as error:
        # gloo raises RuntimeError itself, with the place in its own source.
        lost = type(error) is RuntimeError and "/gloo/" in str(error)
        if process.world == 1 or not (lost or isinstance(error, dist.DistBackendError)):
            raise
        raise ProcessLost(
            f"rank {process.rank} of {process.world} cannot reach another process of this run any more; what that one said last "
            "is the reason; the same command continues from the last checkpoint"
        ) from error


def shutdown_distributed() -> None:
    """Leaves the process group, if one was joined; without it torch complains at exit."""
    if dist.is_initialized():
        dist.destroy_process_group()
