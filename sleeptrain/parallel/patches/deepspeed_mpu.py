"""Adapts megatron-core's parallel state to the "model parallel unit" interface that DeepSpeed expects."""

from __future__ import annotations

from typing import Any

SAME_NAME_PREFIXES = ("get_tensor_model_parallel_", "get_pipeline_model_parallel_", "get_data_parallel_")
"""Prefixes of functions that have the same name in DeepSpeed's interface and in megatron-core."""


class Mpu:
    """DeepSpeed's "model parallel unit" over `megatron.core.parallel_state`.

    Without it (DeepSpeed 0.19.8, megatron-core 0.12 to 0.16.1): `deepspeed.initialize(mpu=parallel_state)` raises
    "AttributeError: get_model_parallel_world_size", since DeepSpeed calls names that megatron-core has removed.
    """

    def __init__(self, parallel_state: Any) -> None:
        self._state = parallel_state

    def get_model_parallel_group(self) -> Any:
        """The process group of one copy of the model: pipe x tensor."""
        return self._state.get_model_parallel_group()

    def get_model_parallel_rank(self) -> int:
        """The rank of this process in the model-parallel group."""
        return int(self.get_model_parallel_group().rank())

    def get_model_parallel_world_size(self) -> int:
        """The size of the model-parallel group."""
        return int(self.get_model_parallel_group().size())

    def __getattr__(self, name: str) -> Any:
        if name.startswith(SAME_NAME_PREFIXES) and hasattr(self._state, name):
            return getattr(self._state, name)
        raise AttributeError(name)
