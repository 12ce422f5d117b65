"""The processes of a run along three axes: data, pipe and tensor, with their groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sleeptrain.parallel.config import Mesh, data_parallel_size


@dataclass(frozen=True)
class MeshAxis:
    """Where this process stands among those that differ from it along one axis only."""

    rank: int
    size: int
    group: Any
    """Their process group; None stands for all processes of the run."""


@dataclass(frozen=True)
class MeshAxes:
    """This process on the mesh."""

    data: MeshAxis
    pipe: MeshAxis
    tensor: MeshAxis
    mpu: Any
    """What DeepSpeed asks for groups; None where the data axis is the only one."""

    @property
    def pipes(self) -> list[list[int]]:
        """The ranks of the stages of every pipeline of the run."""
        apart = self.data.size * self.tensor.size
        return [[first + apart * stage for stage in range(self.pipe.size)] for first in range(apart)]

    @property
    def copies(self) -> int:
        """How many processes hold, or work out, the same numbers about a row of the batch."""
        return self.pipe.size * self.tensor.size


def init_mesh(mesh: Mesh, rank: int, world: int) -> MeshAxes:
    """Arrange the processes, which must have joined one process group; a collective. Tensor neighbours have neighbouring
    ranks, so that they share a node; pipe neighbours are farthest.

    Calling it again with the same sizes changes nothing; with others, the groups are made anew. Raises UserError where
    `world` does not fit the mesh.
    """
    data = data_parallel_size(mesh, world)
    if mesh.pipe == mesh.tensor == 1:
        return MeshAxes(MeshAxis(rank, world, None), MeshAxis(0, 1, None), MeshAxis(0, 1, None), None)
    from sleeptrain.parallel.patches.deepspeed_mpu import Mpu
    from sleeptrain.parallel.patches.megatron_warnings import import_megatron
    from sleeptrain.parallel.patches.sequence_parallel_on_cpu import allow_sequences_on_cpu

    import_megatron()
    if mesh.sequence:
        allow_sequences_on_cpu()
    from megatron.core import parallel_state as state

    now = (data, mesh.pipe, mesh.tensor)
    if state.model_parallel_is_initialized() and now != _sizes(state):
        state.destroy_model_parallel()
    if not state.model_parallel_is_initialized():
        state.initialize_model_parallel(mesh.tensor, mesh.pipe, create_gloo_process_groups=False)
    return MeshAxes(
        MeshAxis(state.get_data_parallel_rank(), data, state.get_data_parallel_group()),
        MeshAxis(state.get_pipeline_model_parallel_rank(), mesh.pipe, state.get_pipeline_model_parallel_group()),
        MeshAxis(state.get_tensor_model_parallel_rank(), mesh.tensor, state.get_tensor_model_parallel_group()),
        Mpu(state),
    )


def _sizes(state: Any) -> tuple[int, int, int]:
    return (
        state.get_data_parallel_world_size(),
        state.get_pipeline_model_parallel_world_size(),
        state.get_tensor_model_parallel_world_size(),
    )
