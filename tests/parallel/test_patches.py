"""Each work-around works, and is still needed."""

import subprocess
import sys

import pytest
import torch

from sleeptrain.parallel import Mesh
from sleeptrain.parallel.mesh import init_mesh
from sleeptrain.parallel.patches.deepspeed_mpu import Mpu
from sleeptrain.parallel.patches.sequence_parallel_on_cpu import allow_sequences_on_cpu
from sleeptrain.parallel.process import init_distributed
from tests.distributed import run

IMPORT = "import megatron.core.tensor_parallel"
QUIETLY = "from sleeptrain.parallel.patches.megatron_warnings import import_megatron; import_megatron()"


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


def gathered_and_scattered():
    """Errors without the work-around, and what comes of two slices with it."""
    process = init_distributed()
    group = init_mesh(Mesh(tensor=2), process.rank, process.world).tensor.group
    from megatron.core import tensor_parallel

    ways = (
        tensor_parallel.gather_from_sequence_parallel_region,
        tensor_parallel.reduce_scatter_to_sequence_parallel_region,
    )
    mine, errors = torch.arange(4.0) + 4 * process.rank, []
    for way in ways:
        try:
            way(mine, group=group)
        except (AssertionError, RuntimeError) as error:
            errors.append(str(error))
    allow_sequences_on_cpu()
    return errors, *(way(mine, group=group).tolist() for way in ways)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="megatron-core allocates on this machine's GPU")
def test_megatron_still_wants_a_gpu_for_sequences():
    for rank, (errors, whole, part) in enumerate(run(gathered_and_scattered, 2)):
        assert len(errors) == 2 and all("CUDA" in error for error in errors)
        assert whole == list(range(8)) and part == [[4, 6], [8, 10]][rank]
