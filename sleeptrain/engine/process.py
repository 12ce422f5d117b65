"""Joins the processes of a run: one on a laptop, or many under torchrun, `deepspeed` or any launcher that sets RANK."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from sleeptrain.config.errors import UserError
from sleeptrain.engine.patches.quiet import quiet, silence_deprecations
from sleeptrain.engine.patches.shared_memory import skip_shared_memory_operator


@dataclass(frozen=True)
class Place:
    """Where this process stands among all."""

    rank: int
    world: int
    local_rank: int
    device: torch.device


def init_distributed(timeout: timedelta = timedelta(minutes=10)) -> Place:
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
    device = torch.device("cuda", local_rank) if gpu else torch.device("cpu")
    if not dist.is_initialized():
        if gpu:
            torch.cuda.set_device(device)
        backend = "nccl" if gpu else "gloo"
        if "RANK" in os.environ:
            dist.init_process_group(backend, timeout=timeout, device_id=device if gpu and world > 1 else None)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    silence_deprecations()
    with quiet():
        import deepspeed.comm

        skip_shared_memory_operator()
        if not deepspeed.comm.is_initialized():
            deepspeed.comm.init_distributed(auto_mpi_discovery=False, timeout=timeout, verbose=False)
    return Place(dist.get_rank(), dist.get_world_size(), local_rank, device)


def _numbers() -> tuple[int, int]:
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        return 0, 1
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(
            f"the environment has some of RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, but not {', '.join(missing)}: "
            "start with torchrun or set all four, or unset them for one process"
        )
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def leave() -> None:
    """Leaves the process group, if one was joined; without it torch complains at exit."""
    if dist.is_initialized():
        dist.destroy_process_group()
