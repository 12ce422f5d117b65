"""Gives DeepSpeed megatron-core's process groups under the names that it asks for."""

from __future__ import annotations

from typing import Any

SAME = ("get_tensor_model_parallel_", "get_pipeline_model_parallel_", "get_data_parallel_")
"""What both call by the same names begins so."""


class Mpu:
    """DeepSpeed's "model parallel unit" over `megatron.core.parallel_state`.

    Without it (DeepSpeed 0.19.8, megatron-core 0.12 to 0.16.1) `deepspeed.initialize(mpu=parallel_state)` ends in
    "AttributeError: get_model_parallel_world_size": megatron-core gave up the older names, which DeepSpeed still calls.
    """

    def __init__(self, parallel_state: Any) -> None:
        self._state = parallel_state

    def get_model_parallel_group(self) -> Any:
        """The processes that hold one copy of the model between them: pipe times tensor."""
        return self._state.get_model_parallel_group()

    def get_model_parallel_rank(self) -> int:
        """The rank of this process among them."""
        return int(self.get_model_parallel_group().rank())

    def get_model_parallel_world_size(self) -> int:
        """How many they are."""
        return int(self.get_model_parallel_group().size())

    def __getattr__(self, name: str) -> Any:
        if name.startswith(SAME) and hasattr(self._state, name):
            return getattr(self._state, name)
        raise AttributeError(name)
