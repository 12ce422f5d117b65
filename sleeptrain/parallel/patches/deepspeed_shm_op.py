"""Stops DeepSpeed from compiling its shared-memory communication operator on CPUs."""

from __future__ import annotations


def skip_shm_op_build() -> None:
    """Marks the operator as incompatible. Call before `deepspeed.comm.init_distributed`.

    Without it, on a CPU (DeepSpeed 0.19.8): the first start compiles a C++ operator for 25 to 94 seconds, raises "Unable
    to JIT load the deepspeed_shm_comm op" if ninja is not on PATH, and leaves files in /dev/shm. Only tensor-parallel
    inference uses the operator.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
