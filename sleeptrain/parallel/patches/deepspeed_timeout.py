"""Gives the process groups that DeepSpeed makes the timeout of the run."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist


def give_new_groups_a_timeout(timeout: timedelta) -> None:
    """Makes `deepspeed.comm.new_group` pass a timeout to torch. Call after `deepspeed.comm.init_distributed`.

    Without it (DeepSpeed 0.19.8): ZeRO reduces gradients in a clone of the group of all processes, which has torch's default
    timeout, 30 minutes with gloo and 10 with NCCL, whatever the run was told. A stopped rank is then noticed that late.
    """
    from deepspeed.comm import comm

    def new_group(ranks: Sequence[int]) -> Any:
        return dist.new_group(ranks, timeout=timeout)

    comm.cdb.new_group = new_group
