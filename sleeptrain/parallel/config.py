"""The `mesh:` section: how many processes share what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd

from sleeptrain.config.errors import Problem
from sleeptrain.model.config import Model


@dataclass(frozen=True)
class Mesh:
    """How the processes of a run are arranged."""

    data: int = 0
    """Processes that share the rows of a batch; 0 takes all that pipe and tensor leave."""
    pipe: int = 1
    """Stages that share the layers."""
    tensor: int = 1
    """Processes that share every layer."""
    zero: int = 1
    """ZeRO stage over the data axis: 1 divides the optimizer's state, 2 the gradients too."""

    def problems(self) -> list[Problem]:
        """What is wrong with the values, one by one."""
        found = []
        if self.data < 0:
            found.append(Problem("data", "must be a number of processes, or 0 for all there are"))
        if self.pipe != 1:
            found.append(Problem("pipe", "is not available in this version: leave it at 1"))
        if self.tensor < 1:
            found.append(Problem("tensor", "must be at least 1 process"))
        if self.zero not in (1, 2):
            found.append(Problem("zero", "must be 1 or 2; 3 is not available in this version, and 0 is not offered"))
        return found


def shared(model: Model) -> Mapping[str, int]:
    """What tensor parallelism divides, by field of the `model:` section: heads of the mixers there are, and the MLP."""
    found = {"mlp.hidden": model.mlp.hidden}
    if "A" in model.pattern:
        found |= {"attention.heads": model.attention.heads, "attention.kv_heads": model.attention.kv_heads}
    if "G" in model.pattern:
        found |= {"deltanet.key_heads": model.deltanet.key_heads, "deltanet.value_heads": model.deltanet.value_heads}
    return found


def undivided(model: Model, tensor: int) -> str | None:
    """Why a model cannot be shared by `tensor` processes, with the sizes that work; None if it can."""
    wrong = [f"model.{field} = {size}" for field, size in shared(model).items() if size % tensor]
    if not wrong:
        return None
    common = gcd(*shared(model).values())
    sizes = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
    return f"{' and '.join(wrong)} cannot be shared by {tensor} processes; mesh.tensor can be {sizes} for this model"


def padded(vocab: int, tensor: int) -> int:
    """Rows of the embedding when `tensor` processes share it: equal parts, each a multiple of 64, which tensor cores like."""
    return vocab if tensor == 1 else -(-vocab // (64 * tensor)) * 64 * tensor


def data_size(mesh: Mesh, world: int) -> int:
    """Processes of the data axis of a run of `world` processes.

    Raises ValueError, naming the fields and the nearest number of processes that works, where they do not fit.
    """
    model = mesh.pipe * mesh.tensor
    data = mesh.data or max(1, world // model)
    if data * model == world:
        return data
    low, high = max(1, world // model) * model, -(-world // model) * model
    near = f"{low}" if low == high or low > world else f"{low} or {high}"
    ask = near if mesh.data == 0 else f"{data * model}"
    also = "" if mesh.data == 0 or world % model else f", or set mesh.data = {world // model}"
    raise ValueError(
        f"mesh.data = {mesh.data or 'all'} x mesh.pipe = {mesh.pipe} x mesh.tensor = {mesh.tensor} does not fill {world} "
        f"process{'es' if world > 1 else ''}: start {ask}{also}"
    )
