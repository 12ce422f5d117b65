"""The `mesh:` section: sizes of the data, pipe and tensor axes; and the sizes of model and batch that they can divide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd

from sleeptrain.config.errors import Problem
from sleeptrain.model.config import Model
from sleeptrain.program import Sleep, loop_range
from sleeptrain.schedule import balance


@dataclass(frozen=True)
class Mesh:
    """The axes of the device mesh, and the ZeRO stage."""

    data: int = 0
    """Data-parallel size: processes that share the rows of a batch; 0 means all processes divided by pipe x tensor."""
    pipe: int = 1
    """Pipeline-parallel size: stages that share the layers."""
    tensor: int = 1
    """Tensor-parallel size: processes that share every layer."""
    sequence: bool = False
    """Sequence parallelism: the tensor axis also shards the tokens between the layers; less memory, the same traffic."""
    group: int = 0
    """Micro-batches that go through the pipeline together, so that one fills the bubbles of another; 0 means automatic."""
    zero: int = 1
    """ZeRO stage over the data axis: 1 shards the optimizer state, 2 also the gradients, 3 also the parameters."""

    def problems(self) -> list[Problem]:
        """Every invalid value, one problem each."""
        found = []
        if self.data < 0:
            found.append(Problem("data", "must be a number of processes, or 0 for all that are left"))
        for name in ("pipe", "tensor"):
            if getattr(self, name) < 1:
                found.append(Problem(name, "must be at least 1 process"))
        if self.group < 0:
            found.append(Problem("group", "must be a number of micro-batches, or 0 for automatic"))
        if self.zero not in (1, 2, 3):
            found.append(
                Problem(
                    "zero",
                    "must be 1, 2 or 3; 0 is not offered: it drifts in bf16 and does not skip steps with NaN gradients",
                )
            )
        return found


def divided_sizes(model: Model) -> Mapping[str, int]:
    """Sizes that tensor parallelism divides, by field of the recipe's `model:` section: heads of the mixers in use, MLP width."""
    sizes = {"mlp.hidden": model.mlp.hidden}
    if "A" in model.pattern:
        sizes |= {"attention.heads": model.attention.heads, "attention.kv_heads": model.attention.kv_heads}
    if "G" in model.pattern:
        sizes |= {"deltanet.key_heads": model.deltanet.key_heads, "deltanet.value_heads": model.deltanet.value_heads}
    return sizes


def tensor_obstacle(model: Model, tensor: int) -> str | None:
    """Why a model cannot be sharded over `tensor` processes, with the sizes that work; None if it can."""
    wrong = [f"model.{field} = {size}" for field, size in divided_sizes(model).items() if size % tensor]
    if not wrong:
        return None
    common = gcd(*divided_sizes(model).values())
    sizes = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
    return f"{' and '.join(wrong)} cannot be shared by {tensor} processes; mesh.tensor can be {sizes} for this model"


def padded_vocab(vocab: int, tensor: int) -> int:
    """Rows of an embedding that is sharded over `tensor` processes: equal shards, each a multiple of 64 for tensor cores."""
    return vocab if tensor == 1 else -(-vocab // (64 * tensor)) * 64 * tensor


@dataclass(frozen=True)
class BatchLayout:
    """How one process goes through its rows of a batch."""

    micro: int
    """Rows of a micro-batch."""
    group: int
    """Micro-batches of one backward."""
    accumulation: int
    """Backwards of a step."""


def batch_layout(batch: int, micro: int | None, mesh: Mesh, data: int) -> BatchLayout:
    """Rows into micro-batches, micro-batches into groups. Without a pipeline a group is one micro-batch, unless
    `mesh.group` says more; with one it is as many as fit, up to two more than stages, which hides slow links.

    Raises ValueError, naming the fields and the nearest sizes that work.
    """
    if batch % data:
        raise ValueError(
            f"train.batch = {batch}: does not divide over {data} processes; the nearest that does is {batch // data * data or data}"
        )
    share = batch // data
    sizes = [mesh.group] if mesh.group else [1] if mesh.pipe == 1 else [mesh.pipe + 2, mesh.pipe + 1, mesh.pipe]
    if micro is None:
        fits = [g for g in sizes if share % g == 0]
        if not fits:
            raise ValueError(
                f"train.batch = {batch}: the {share} rows of each of {data} processes do not make groups of "
                f"{_either(sizes)} micro-batches (mesh.group, mesh.pipe = {mesh.pipe}); the nearest batch that does is "
                f"{-(-share // sizes[-1]) * sizes[-1] * data}"
            )
        return BatchLayout(share // fits[0], fits[0], 1)
    if share % micro:
        raise ValueError(
            f"train.micro = {micro}: does not divide the {share} rows of each of {data} processes (train.batch = {batch})"
        )
    pieces = share // micro
    fits = [g for g in sizes if pieces % g == 0]
    if not fits:
        raise ValueError(
            f"train.micro = {micro}: the {pieces} micro-batches of each of {data} processes (train.batch = {batch}) do not make "
            f"groups of {_either(sizes)} (mesh.group, mesh.pipe = {mesh.pipe}); the nearest batch that does is "
            f"{-(-pieces // sizes[-1]) * sizes[-1] * micro * data}"
        )
    return BatchLayout(micro, fits[0], pieces // fits[0])


def _either(sizes: list[int]) -> str:
    return " or ".join(map(str, sorted(sizes)))


def pipeline_obstacle(model: Model, mesh: Mesh) -> str | None:
    """Why a model cannot be cut into `mesh.pipe` stages; None if it can."""
    depth = len(model.pattern)
    if mesh.pipe > depth:
        return f"the stack has {depth} blocks; mesh.pipe can be 1 to {depth} for this model"
    return None


def stage_cuts(model: Model, sleep: Sleep, pipe: int) -> tuple[int, ...]:
    """Index of the first block of every stage but the first, such that stages cost alike.

    The cost of a block is the number of elements of its matrices, times the number of passes if it is looped.
    """
    a, g, width = model.attention, model.deltanet, model.width
    mixers = {
        "A": width * a.head_dim * (a.heads * (3 if a.gate else 2) + 2 * a.kv_heads),
        "G": width * g.head_dim * (2 * g.key_heads + 3 * g.value_heads) + g.value_heads * g.head_dim**2,
    }
    costs = [mixers[letter] + 3 * width * model.mlp.hidden for letter in model.pattern]
    depth = len(model.pattern)
    return balance(costs, pipe, loop_range(sleep, depth), sleep.max_passes, head=width * (model.vocab or 0)).cuts


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
