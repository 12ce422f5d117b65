"""Every workaround for DeepSpeed outside the engine and for megatron-core works and is still needed.

A test that fails because the workaround is no longer needed is deleted together with the workaround.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import warnings
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from sleeptrain.engine import EngineSpec, Optim, build_engine
from sleeptrain.parallel import Mesh
from sleeptrain.parallel.mesh import init_mesh
from sleeptrain.parallel.patches.deepspeed_mpu import Mpu
from sleeptrain.parallel.patches.sequence_parallel_on_cpu import allow_sequence_parallel_on_cpu
from sleeptrain.parallel.process import init_distributed
from tests.distributed import run
from tests.engine.tiny import Tiny, train


def init_deepspeed_without_ninja() -> str:
    """The error of DeepSpeed's start without `skip_shm_op_build` and without ninja."""
    import deepspeed.comm

    os.environ["PATH"] = "/nonexistent"
    dist.init_process_group("gloo")
    try:
        deepspeed.comm.init_distributed(auto_mpi_discovery=False)
    except RuntimeError as error:
        return str(error)
    return ""


@pytest.mark.slow
def test_deepspeed_still_compiles_its_shared_memory_operator() -> None:
    assert "deepspeed_shm_comm" in run(init_deepspeed_without_ninja, 1, fresh=True)[0]


@pytest.mark.slow
def test_the_bf16_optimizer_still_prints(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sleeptrain.engine.build.deepspeed_quiet", contextlib.nullcontext)
    build_engine(Tiny(), Optim(), EngineSpec("bf16", zero=1, micro_rows=1, accumulation=1))
    assert capfd.readouterr().out


def timeout_of_a_group_of_deepspeed() -> float:
    """Seconds, in a run that was told 120, without `give_new_groups_a_timeout`."""
    import deepspeed.comm

    from sleeptrain.parallel.patches.deepspeed_shm_op import skip_shm_op_build

    skip_shm_op_build()
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    deepspeed.comm.init_distributed(auto_mpi_discovery=False, timeout=timedelta(seconds=120), verbose=False)
    group = deepspeed.comm.new_group([0])
    return float(group._get_backend(torch.device("cpu")).options._timeout.total_seconds())


@pytest.mark.slow
def test_groups_of_deepspeed_still_have_a_timeout_of_their_own() -> None:
    assert run(timeout_of_a_group_of_deepspeed, 1)[0] == 1800.0


@pytest.mark.slow
def test_zero_3_still_calls_deprecated_collectives() -> None:
    engine = build_engine(Tiny(), Optim(), EngineSpec("fp32", zero=3, micro_rows=4, accumulation=1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(engine, range(1))
    assert any("is deprecated" in str(warning.message) for warning in caught)


IMPORT = "import megatron.core.tensor_parallel"
QUIET_IMPORT = "from sleeptrain.parallel.patches.megatron_warnings import import_megatron; import_megatron()"


def warnings_of(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr


@pytest.mark.slow
def test_our_import_of_megatron_is_quiet() -> None:
    assert warnings_of(QUIET_IMPORT) == ""


@pytest.mark.exhaustive
def test_megatron_still_warns_on_import() -> None:
    assert "Apex" in warnings_of(IMPORT)


def initialize_with_mpu() -> tuple[str, list[int], bool]:
    """With tensor parallelism over two processes: the error of `deepspeed.initialize` with megatron-core's parallel state, and
    the ranks and sizes that `Mpu` gives instead, and whether it invents names."""
    from megatron.core import parallel_state

    init_distributed()
    import deepspeed

    parallel_state.initialize_model_parallel(2, 1, create_gloo_process_groups=False)
    error, model = "", Tiny()
    try:
        deepspeed.initialize(
            model=model,
            optimizer=torch.optim.AdamW(model.parameters()),
            config={"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 1}},
            mpu=parallel_state,
        )
    except AttributeError as raised:
        error = str(raised)
    mpu = Mpu(parallel_state)
    numbers = [
        mpu.get_model_parallel_rank(), mpu.get_model_parallel_world_size(), mpu.get_data_parallel_world_size(),
        mpu.get_tensor_model_parallel_rank(),
    ]  # fmt: skip
    return error, numbers, hasattr(mpu, "get_slice_parallel_rank")


@pytest.mark.slow
def test_megatron_still_lacks_names_that_deepspeed_calls() -> None:
    for rank, (error, numbers, invents_names) in enumerate(run(initialize_with_mpu, 2)):
        assert "get_model_parallel_" in error
        assert numbers == [rank, 2, 1, rank] and not invents_names


def sequence_parallel_collectives():
    """The errors of both collectives without the workaround, and their results with it."""
    process = init_distributed()
    group = init_mesh(Mesh(tensor=2), process.rank, process.world).tensor.group
    from megatron.core import tensor_parallel

    collectives = (
        tensor_parallel.gather_from_sequence_parallel_region,
        tensor_parallel.reduce_scatter_to_sequence_parallel_region,
    )
    local, errors = torch.arange(4.0) + 4 * process.rank, []
    for collective in collectives:
        try:
            collective(local, group=group)
        except (AssertionError, RuntimeError) as error:
            errors.append(str(error))
    allow_sequence_parallel_on_cpu()
    return errors, *(collective(local, group=group).tolist() for collective in collectives)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="megatron-core allocates on this machine's GPU")
def test_megatron_still_needs_a_gpu_for_sequence_parallelism() -> None:
    for rank, (errors, gathered, scattered) in enumerate(run(sequence_parallel_collectives, 2)):
        assert len(errors) == 2 and all("CUDA" in error for error in errors)
        assert gathered == list(range(8)) and scattered == [[4, 6], [8, 10]][rank]
