"""Tests that need a GPU: executor, CUDA graphs, kernels, attention, and trainings on one and two devices (`make test-gpu`)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sleep_kernels.comparison import Shape
from sleeptrain.data.batch import Batch
from tests.distributed import run
from tests.gpu import checks
from tests.train.jobs import recipe_file, text_data, trained

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
SHAPES = [Shape(2, 200, 2, 4, d, dtype) for d in (64, 128) for dtype in (torch.bfloat16, torch.float32)]
TEXT = [
    "sleep.window=16",
    "sleep.passes=3",
    "sleep.loop.trigger=every",
    "train.batch=8",
    "train.steps=4",
    "checkpoint.every=0",
]
gpu = pytest.mark.gpu


@gpu
@pytest.mark.parametrize("case", checks.EXECUTED)
def test_the_executor_equals_autograd(case):
    checks.check_executor(CUDA, case)


@gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("case", "policy"), zip(checks.EXECUTED, ("pass", "window", "block"), strict=True))
def test_cuda_graphs_equal_eager_execution(case, policy, dtype):
    checks.check_graphs(CUDA, case, policy, dtype)


@gpu
@pytest.mark.parametrize("backend", ["chunked", "triton"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_equal_the_reference(shape, backend):
    checks.check_kernels(CUDA, shape, backend)


@gpu
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_attention_equals_a_softmax_written_out(dtype, bound):
    checks.check_attention(CUDA, dtype, bound)


@gpu
def test_a_batch_arrives_whole():
    tokens = torch.arange(12).view(3, 4)
    batch = Batch(tokens, tokens + 1, tokens + 2, tokens[:, 0], {"depth": tokens[:, 1]})
    moved = batch.to(CUDA)
    for name in ("tokens", "targets", "groups", "ids"):
        assert torch.equal(getattr(moved, name).cpu(), getattr(batch, name)) and getattr(moved, name).is_cuda
    assert torch.equal(moved.labels["depth"].cpu(), batch.labels["depth"])


@gpu
@pytest.mark.parametrize(
    "more", [[], ["train.precision=bf16", "train.recompute=pass", "train.cuda_graphs=true"]], ids=str
)
def test_rule110_tiny_learns(tmp_path, more):
    """The command, in a process of its own; its losses fall, and the device's memory is measured."""
    program = [sys.executable, "-m", "sleeptrain"]
    data = tmp_path / "data"
    subprocess.run([*program, "data", "build", "rule110-tiny", "--out", str(data), "train=512", "test=32"], check=True)
    overrides = [f"data.sources=[{{path: {data}}}]", f"run_dir={tmp_path / 'run'}", "train.steps=60", *more]
    subprocess.run([*program, "train", "rule110-tiny", *overrides], check=True)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows]
    assert len(rows) == 60 and sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert all(row["memory_bytes"] > 0 and not row["skipped"] for row in rows)


def trainings(folder: str):
    """Metrics by mesh, on the current processes."""
    where = Path(folder)
    meshes = {"data": [], "pipe": ["mesh.pipe=2"], "tensor": ["mesh.tensor=2"]}
    return {name: trained(where, name, where / "text", [*TEXT, *more])[0] for name, more in meshes.items()}


def one_training(folder: str):
    where = Path(folder)
    return trained(where, "one", where / "text", TEXT)[0]


@gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_devices_train_as_one(tmp_path):
    """NCCL between two devices: data and tensor parallelism, and a pipeline of two stages."""
    text_data(tmp_path)
    recipe_file(tmp_path)
    (one,) = run(one_training, 1, str(tmp_path), timeout=600, fresh=True)
    two, _ = run(trainings, 2, str(tmp_path), timeout=600, fresh=True)
    for rows in two.values():
        for key in ("loss", "grad_norm"):
            assert [row[key] for row in rows] == pytest.approx([row[key] for row in one], rel=1e-3)


@pytest.mark.parametrize("case", checks.EXECUTED[1:2])
def test_the_checks_of_executor_and_graphs_run_on_a_cpu(case):
    checks.check_executor(CPU, case)
    checks.check_graphs(CPU, case, "pass", torch.float32)


def test_the_checks_of_kernels_and_attention_run_on_a_cpu():
    checks.check_kernels(CPU, SHAPES[1], "chunked")
    for dtype, bound in ((torch.float64, 1e-10), (torch.bfloat16, 3e-2)):
        checks.check_attention(CPU, dtype, bound)
