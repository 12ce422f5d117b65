"""Keeps DeepSpeed from compiling its shared-memory communication operator."""

from __future__ import annotations


def skip_shared_memory_operator() -> None:
    """Call before DeepSpeed's communication is set up.

    Without it, on a CPU (DeepSpeed 0.19.8): the first start compiles a C++ operator for 25 to 94 seconds, raises "Unable
    to JIT load the deepspeed_shm_comm op" where ninja is not on PATH, and leaves files in /dev/shm. It serves
    tensor-parallel inference only.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
