"""The `mesh:` section: sizes of the data, pipe and tensor axes; and the sizes of model and batch that they can divide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

from sleeptrain.config import Problem
from sleeptrain.errors import UserError
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
    timeout: int = 600
    """Seconds that a process waits for the others in a collective or a message, before it says that one is lost."""

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
        if self.timeout < 1:
            found.append(Problem("timeout", "must be at least 1 second"))
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
    if set(model.pattern) & {"A", "L"}:
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


def unsharded_options(model: Model) -> list[str]:
    """The options of a model that tensor parallelism does not shard, by field."""
    attends, delta = bool(set(model.pattern) & {"A", "L"}), "G" in model.pattern
    found = {
        "model.attention.bias": attends and model.attention.bias,
        "model.deltanet.generator": delta and model.deltanet.generator is not None,
    }
    return [field for field, used in found.items() if used]


def padded_vocab(vocab: int, tensor: int) -> int:
    """Rows of an embedding that is sharded over `tensor` processes: equal shards, each a multiple of 64 for tensor cores."""
    return vocab if tensor == 1 else -(-vocab // (64 * tensor)) * 64 * tensor


class LayoutError(UserError):
    """Fields whose values do not fit together, or do not fit the number of processes."""

    def __init__(self, fields: Mapping[str, Any], reason: str) -> None:
        """`fields`: values by dotted path. `reason`: what is wrong and what to do about it, without the values."""
        self.fields, self.reason = dict(fields), reason
        super().__init__(f"{' with '.join(f'{path} = {value}' for path, value in fields.items())}: {reason}")


@dataclass(frozen=True)
class BatchLayout:
    """The batch arithmetic: global batch = data x micro x group x accumulation."""

    data: int
    """Data-parallel processes, which share the rows of a batch."""
    micro: int
    """Rows of a micro-batch."""
    group: int
    """Micro-batches of one backward."""
    accumulation: int
    """Gradient accumulation: backwards of a step."""

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one process in a step."""
        return self.group * self.accumulation

    @property
    def rows_per_backward(self) -> int:
        """Rows of one process in one backward."""
        return self.micro * self.group


def batch_layout(batch: int, micro: int | None, mesh: Mesh, data: int) -> BatchLayout:
    """Divide `batch` rows over `data` processes into micro-batches, and these into groups of one backward.

    Without a pipeline a group is one micro-batch, unless `mesh.group` says more. With a pipeline it is as many as fit, up to
    two more than stages, which hides slow links. Raises LayoutError with the nearest sizes that work.
    """
    if batch % data:
        nearest = max(1, round(batch / data)) * data
        raise LayoutError(
            {"train.batch": batch}, f"does not divide over {data} processes; the nearest that does is {nearest}"
        )
    share = batch // data
    if share % (micro or 1):
        raise LayoutError(
            {"train.micro": micro, "train.batch": batch},
            f"the micro-batch does not divide the {share} rows of each of {data} processes; choose a divisor of {share}",
        )
    sizes = [mesh.group] if mesh.group else [1] if mesh.pipe == 1 else [mesh.pipe + 2, mesh.pipe + 1, mesh.pipe]
    pieces = share // micro if micro else share
    group = next((size for size in sizes if pieces % size == 0), None)
    if group is None:
        what = f"{pieces} micro-batches" if micro else f"{share} rows"
        nearest = -(-pieces // sizes[-1]) * sizes[-1] * (micro or 1) * data
        raise LayoutError(
            {"train.batch": batch, "train.micro": micro, "mesh.group": mesh.group, "mesh.pipe": mesh.pipe},
            f"the {what} of each of {data} processes do not make groups of {_either(sizes)} micro-batches; "
            f"the nearest batch that does is {nearest}",
        )
    if micro is None:
        return BatchLayout(data, share // group, group, 1)
    return BatchLayout(data, micro, group, pieces // group)


def _either(sizes: list[int]) -> str:
    return " or ".join(map(str, sorted(sizes)))


def pipeline_obstacle(model: Model, mesh: Mesh) -> str | None:
    """Why a model cannot be cut into `mesh.pipe` stages; None if it can."""
    depth = len(model.pattern)
    if mesh.pipe > depth:
        return f"the stack has {depth} blocks; mesh.pipe can be 1 to {depth}"
    return None


def stage_cuts(model: Model, sleep: Sleep, pipe: int) -> tuple[int, ...]:
    """Index of the first block of every stage but the first, such that stages cost alike.

    The cost of a block is the number of elements of its matrices, times the number of passes if it is looped.
    """
    a, g, width = model.attention, model.deltanet, model.width
    attention, values = width * a.head_dim * (a.heads * (3 if a.gate else 2) + 2 * a.kv_heads), g.value_heads * g.d_v
    deltanet = width * (2 * g.key_heads * g.head_dim + 3 * values) + values * g.head_dim
    deltanet += (g.generator or 0) * (width + g.conv * values)
    mixers = {"A": attention, "L": attention, "G": deltanet}
    costs = [mixers[letter] + 3 * width * model.mlp.hidden for letter in model.pattern]
    depth = len(model.pattern)
    return balance(costs, pipe, loop_range(sleep, depth), sleep.max_passes, head=width * (model.vocab or 0)).cuts


def data_parallel_size(mesh: Mesh, world: int) -> int:
    """Processes of the data axis of a run of `world` processes. Raises LayoutError with the nearest numbers that fit."""
    model = mesh.pipe * mesh.tensor
    below, above = world // model * model, -(-world // model) * model
    wanted = [mesh.data * model] if mesh.data else [n for n in sorted({below, above}) if n]
    if world in wanted:
        return world // model
    fields = {"mesh.data": mesh.data}
    fields |= {f"mesh.{axis}": size for axis in ("pipe", "tensor") if (size := getattr(mesh, axis)) > 1}
    take_all = ", or set mesh.data=0 to take all there are" if mesh.data and world % model == 0 else ""
    raise LayoutError(
        fields,
        f"{world} process{'es were' if world > 1 else ' was'} started; start {' or '.join(map(str, wanted))}, for instance with "
        f"torchrun --nproc_per_node {wanted[0]} -m sleeptrain train ...{take_all}",
    )
