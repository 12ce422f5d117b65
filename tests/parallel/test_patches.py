"""Each work-around works, and is still needed."""

import subprocess
import sys

import pytest

from sleeptrain.engine.process import init_distributed
from sleeptrain.parallel.patches.mpu import Mpu
from tests.distributed import run

IMPORT = "import megatron.core.tensor_parallel"
QUIETLY = "from sleeptrain.parallel.patches.silence import import_megatron; import_megatron()"


@pytest.mark.slow
def test_megatron_still_complains_on_import_unless_it_is_silenced():
    said = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
        for code in (IMPORT, QUIETLY)
    ]
    assert "Apex" in said[0] and said[1] == ""


def groups():
    """What DeepSpeed asks for, from a process of two that share the layers."""
    from megatron.core import parallel_state

    init_distributed()
    parallel_state.initialize_model_parallel(2, 1, create_gloo_process_groups=False)
    mpu = Mpu(parallel_state)
    return (
        mpu.get_model_parallel_rank(), mpu.get_model_parallel_world_size(), mpu.get_data_parallel_world_size(),
        mpu.get_tensor_model_parallel_rank(), hasattr(mpu, "get_slice_parallel_rank"),
    )  # fmt: skip


@pytest.mark.slow
def test_megatron_still_lacks_the_names_that_deepspeed_calls():
    from megatron.core import parallel_state

    assert not hasattr(parallel_state, "get_model_parallel_world_size")
    assert run(groups, 2) == [(rank, 2, 1, rank, False) for rank in (0, 1)]
