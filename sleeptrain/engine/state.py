"""The optimizer state of a process as slices of named parameters, for every ZeRO stage.

DeepSpeed keeps fp32 master weights and moments in flat partitions: one for each parameter group under ZeRO 1 and 2, one for
each of its sub-groups under ZeRO 3. The maps from parameters to partitions are those that it keeps for its own checkpoints. A frozen
weight is in none of them: its values are those of the model, in the model's dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

MASTER = "master"
"""The key of the fp32 weights, beside those of the optimizer."""
ADAM, MUON = ("exp_avg", "exp_avg_sq"), ("momentum_buffer",)
"""The keys of the moments of an AdamW and of a Muon group."""


@dataclass(frozen=True)
class StateSlice:
    """Consecutive elements of a flattened parameter that this process keeps."""

    name: str
    shape: tuple[int, ...]
    """Shape of the parameter on this process, which may be a shard."""
    offset: int
    """Index of the first element."""
    values: dict[str, Tensor]
    """Views [elements] in fp32, by key: `master` and, after the first optimizer step, the moments. Of a frozen weight the weight alone,
    in its dtype."""


def state_slices(module: nn.Module, zero_optimizer: Any, *, owned: bool = False) -> list[StateSlice]:
    """The slices that this process keeps, in the order of the parameters.

    All data-parallel processes keep the whole of a frozen weight, except under ZeRO 3; with `owned` each has its share of it.
    """
    slices = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            frozen = _frozen_slice(name, parameter, zero_optimizer.dp_process_group, owned)
            slices += [] if frozen is None else [frozen]
            continue
        part = _part(zero_optimizer, parameter)
        if part is None:
            continue
        flat, start, offset, count = part
        state = zero_optimizer.optimizer.state.get(flat, {})
        tensors = {MASTER: flat.detach(), **{key: state[key] for key in (*ADAM, *MUON) if key in state}}
        values = {key: tensor.narrow(0, start, count) for key, tensor in tensors.items()}
        slices.append(StateSlice(name, tuple(getattr(parameter, "ds_shape", parameter.shape)), offset, values))
    return slices


def optimizer_step(zero_optimizer: Any) -> int:
    """Number of steps that the optimizer has made, which Adam corrects the bias of its moments by."""
    return max((int(state["step"]) for state in zero_optimizer.optimizer.state.values()), default=0)


def set_optimizer_step(zero_optimizer: Any, step: int) -> None:
    """Give every partition moments, unless it has them, and the number of steps; without steps, no moments."""
    states = zero_optimizer.optimizer.state
    if not step:
        states.clear()
        return
    for flat, group in _partitions(zero_optimizer):
        for key in MUON if group["muon"] else ADAM:
            if key not in states[flat]:
                states[flat][key] = torch.zeros_like(flat, requires_grad=False)
        states[flat]["step"] = torch.tensor(float(step))


def publish_master_weights(zero_optimizer: Any) -> None:
    """Compute the parameters on all processes from the master weights, as after an optimizer step; a collective."""
    if hasattr(zero_optimizer, "update_lp_params"):
        zero_optimizer.update_lp_params()
        return
    zero_optimizer.checkpoint_event_prologue()  # every parameter is partitioned
    for index in range(len(zero_optimizer.fp32_partitioned_groups_flat)):
        zero_optimizer._reassign_or_swap_out_partitioned_parameters(index)
    zero_optimizer.checkpoint_event_epilogue()  # those that are always gathered are so again


def _partitions(zero_optimizer: Any) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """The flat fp32 partitions of this process, each with its parameter group."""
    groups = zero_optimizer.optimizer.param_groups
    if hasattr(zero_optimizer, "fp32_partitioned_groups_flat"):
        for index, flat in enumerate(zero_optimizer.fp32_partitioned_groups_flat):
            yield flat, groups[zero_optimizer.sub_group_to_group_id[index]]
    else:
        yield from ((group["params"][0], group) for group in groups)


def _part(zero_optimizer: Any, parameter: nn.Parameter) -> tuple[Tensor, int, int, int] | None:
    """Flat partition, first element in it, first element in the flattened parameter, and number; None if there are none."""
    if hasattr(zero_optimizer, "fp32_partitioned_groups_flat"):
        index, start, size = zero_optimizer.grad_position[zero_optimizer.get_param_id(parameter)]
        offset = zero_optimizer._get_param_partition_rank(parameter) * size
        count = min(size, parameter.ds_numel - offset)  # type: ignore[attr-defined]
        return (zero_optimizer.fp32_partitioned_groups_flat[index], start, offset, count) if count > 0 else None
    mapping = parameter._hp_mapping  # type: ignore[attr-defined]
    if mapping is None:
        return None
    group = zero_optimizer.optimizer.param_groups[mapping.param_group_index]
    address = mapping.hp_fragment_address
    return group["params"][0], address.start, mapping.lp_fragment_address.start, address.numel


def _frozen_slice(name: str, parameter: nn.Parameter, group: Any, owned: bool) -> StateSlice | None:
    """What this process keeps of a frozen weight, or with `owned` its share of that; None if there is nothing."""
    partition, rank = getattr(parameter, "ds_tensor", None), dist.get_rank(group)
    if partition is not None:
        shape, flat = tuple(parameter.ds_shape), partition.detach().view(-1)  # type: ignore[attr-defined]
        offset = rank * flat.numel()
        count = min(flat.numel(), parameter.ds_numel - offset)  # type: ignore[attr-defined]
    else:
        shape, flat, offset, count = tuple(parameter.shape), parameter.detach().view(-1), 0, parameter.numel()
        if owned:
            share = -(-count // dist.get_world_size(group))
            offset = rank * share
            count = min(share, count - offset)
            flat = flat.narrow(0, min(offset, flat.numel()), max(0, count))
    return StateSlice(name, shape, offset, {MASTER: flat.narrow(0, 0, count)}) if count > 0 else None
