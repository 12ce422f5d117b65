"""The device mesh: process groups of the data, pipe and tensor axes, from megatron-core's parallel state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sleeptrain.parallel.config import Mesh, data_parallel_size


@dataclass(frozen=True)
class MeshAxis:
    """One mesh axis: the processes whose coordinates differ from this one's along this axis only."""

    rank: int
    size: int
    group: Any
    """The process group of the axis; None means all processes of the run."""


@dataclass(frozen=True)
class MeshAxes:
    """Coordinates and process groups of this process."""

    data: MeshAxis
    pipe: MeshAxis
    tensor: MeshAxis
    mpu: Any
    """The "model parallel unit" from which DeepSpeed gets process groups; None if data is the only axis above 1."""

    @property
    def pipes(self) -> list[list[int]]:
        """For every pipeline of the run, the ranks of its stages, first stage first."""
        stride = self.data.size * self.tensor.size
        return [[first + stride * stage for stage in range(self.pipe.size)] for first in range(stride)]

    @property
    def model_parallel_size(self) -> int:
        """Number of processes that hold one copy of the model and work on the same rows: pipe x tensor."""
        return self.pipe.size * self.tensor.size


def init_mesh(mesh: Mesh, rank: int, world: int) -> MeshAxes:
    """Create the process groups of the mesh and return this process's coordinates; a collective over the run.

    The default process group must exist. Rank order is tensor, data, pipe, fastest first, so that the tensor axis lies within
    a node. A second call with the same sizes reuses the groups; other sizes replace them. Raises UserError if the axes do
    not multiply to `world`.
    """
    data = data_parallel_size(mesh, world)
    if mesh.pipe == mesh.tensor == 1:
        return MeshAxes(MeshAxis(rank, world, None), MeshAxis(0, 1, None), MeshAxis(0, 1, None), None)
    from sleeptrain.parallel.patches.deepspeed_mpu import Mpu
    from sleeptrain.parallel.patches.megatron_warnings import import_megatron
    from sleeptrain.parallel.patches.sequence_parallel_on_cpu import allow_sequence_parallel_on_cpu

    import_megatron()
    if mesh.sequence:
        allow_sequence_parallel_on_cpu()
    from megatron.core import parallel_state as state

    sizes = (data, mesh.pipe, mesh.tensor)
    if state.model_parallel_is_initialized() and sizes != _initialized_sizes(state):
        state.destroy_model_parallel()
    if not state.model_parallel_is_initialized():
        minutes = -(-mesh.timeout // 60)  # groups do not inherit the timeout of the default one
        state.initialize_model_parallel(
            mesh.tensor, mesh.pipe, create_gloo_process_groups=False, distributed_timeout_minutes=minutes
        )
    return MeshAxes(
        MeshAxis(state.get_data_parallel_rank(), data, state.get_data_parallel_group()),
        MeshAxis(state.get_pipeline_model_parallel_rank(), mesh.pipe, state.get_pipeline_model_parallel_group()),
        MeshAxis(state.get_tensor_model_parallel_rank(), mesh.tensor, state.get_tensor_model_parallel_group()),
        Mpu(state),
    )


def _initialized_sizes(state: Any) -> tuple[int, int, int]:
    """(data, pipe, tensor) of megatron-core's current process groups."""
    return (
        state.get_data_parallel_world_size(),
        state.get_pipeline_model_parallel_world_size(),
        state.get_tensor_model_parallel_world_size(),
    )
