"""`train.compile` in whole runs: losses follow the uncompiled run; where it cannot work it is refused before anything is written."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path

import pytest
from torch._dynamo.utils import counters

from sleeptrain.cli.main import main
from sleeptrain.plan import DeviceMemory
from sleeptrain.train.log import read_metrics
from tests.distributed import run
from tests.train.jobs import recipe_file, rule110_data, text_data, trained

STEPS = [
    "sleep.window=16", "sleep.passes=2", "sleep.loop.trigger=every", "train.batch=8", "train.micro=2", "train.steps=4",
    "train.recompute=block", "checkpoint.every=0", "model.layers=AG",
]  # fmt: skip


def train_with_and_without(folder, changes):
    """Losses, gradient norms and the number of graphs that were compiled, with `train.compile` and then without."""
    where, found = Path(folder), []
    for compiled in ("true", "false"):
        rows, _ = trained(where, compiled, where / "text", [*STEPS, *changes, f"train.compile={compiled}"])
        graphs = counters["stats"].pop("unique_graphs", 0)
        found.append(([row["loss"] for row in rows], [row["grad_norm"] for row in rows], graphs))
    return found


@pytest.mark.parametrize(
    ("world", "changes", "rounding"),
    [
        pytest.param(2, ("mesh.pipe=2", "train.recompute=selective"), 1e-5, marks=pytest.mark.slow),
        pytest.param(
            2,
            ("mesh.tensor=2", "mesh.sequence=true", "model.attention.kv_heads=2", "model.deltanet.key_heads=2"),
            1e-5,
            marks=pytest.mark.slow,
        ),
        pytest.param(1, ("train.precision=bf16",), 5e-3, marks=pytest.mark.exhaustive),
    ],
)
def test_a_compiled_run_follows_the_uncompiled_one(tmp_path, world, changes, rounding):
    """Two pipeline stages that save products, and tensor parallelism, in float32; one process in bf16, whose rounding fused kernels change."""
    text_data(tmp_path)
    recipe_file(tmp_path)
    (losses, norms, graphs), (expected_losses, expected_norms, none) = run(
        train_with_and_without, world, str(tmp_path), changes, timeout=400
    )[0]
    assert losses == pytest.approx(expected_losses, rel=rounding)
    assert norms == pytest.approx(expected_norms, rel=10 * rounding)
    assert len(losses) == 4 and losses[3] < losses[0] and graphs > 0 == none


SENDS_TERM = 'case "$*" in *.cpp*) kill -TERM 0 ;; esac; exec g++ "$@"'


@pytest.mark.parametrize(
    ("compiler", "threads", "status"),
    [
        pytest.param(SENDS_TERM, 1, 75, marks=pytest.mark.slow),
        pytest.param(SENDS_TERM, 2, 75, marks=pytest.mark.exhaustive),
        pytest.param("exit 1", 1, 2, marks=pytest.mark.slow),
    ],
)
def test_a_signal_waits_for_the_compiler_and_a_broken_compiler_is_named(tmp_path, compiler, threads, status):
    """SIGTERM to all processes of a job, which every call of the compiler sends, in this process and in workers of TorchInductor;
    and a compiler that fails."""
    script = tmp_path / "c++"
    script.write_text(f'#!/bin/sh\ncase "$*" in *--version*) exec g++ "$@" ;; esac\n{compiler}\n')
    script.chmod(0o755)
    data, where = rule110_data(tmp_path), tmp_path / "run"
    settings = {
        "CXX": str(script), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        "TORCHINDUCTOR_COMPILE_THREADS": str(threads),
    }  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-m", "sleeptrain", "train", "rule110-tiny", "train.compile=true", "train.steps=3",
         f"data.sources=[{{path: {data}}}]", f"run_dir={where}", "sleep.window=9", "model.layers=G"],
        env=os.environ | settings, start_new_session=True, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == status, result.stderr
    if status == 75:
        assert (where / "checkpoints").exists() and "stopped and saved" in result.stderr
    else:
        assert "error: train.compile = true: torch.compile cannot compile a block" in result.stderr
        assert "train.compile=false trains without" in result.stderr and "Traceback" not in result.stderr


def test_without_a_cxx_compiler_compilation_is_refused(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "sleeptrain", "train", "rule110-tiny", "train.compile=true", f"run_dir={tmp_path / 'run'}"],
        env=os.environ | {"CXX": str(tmp_path / "no-compiler")}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 2 and result.stderr.startswith("error: train.compile = true: torch.compile needs a C++")
    assert "Traceback" not in result.stderr and not (tmp_path / "run").exists()


def no_compiler(graph, inputs):
    raise RuntimeError("no compiler here")


def train_with(folder: str, compiled: str, *more: str):
    """Status, standard error and losses of the command, in a process that takes its CPU for a GPU, where no graph can be compiled."""
    from sleeptrain import plan
    from sleeptrain.train import setup

    # Neither is restored: the process ends with the test.
    plan.process_memory = lambda device: DeviceMemory(1e12, "a device", gpu=True)
    setup.compile_blocks = partial(setup.compile_blocks, backend=no_compiler)
    where, err = Path(folder, compiled), io.StringIO()
    words = [f"data.sources=[{{path: {folder}/rule110}}]", "sleep.window=9", "train.steps=2", "checkpoint.every=0"]
    with redirect_stderr(err):
        status = main(["train", "rule110-tiny", *words, *more, f"train.compile={compiled}", f"run_dir={where}"])
    return status, err.getvalue(), [row["loss"] for row in read_metrics(where / "metrics.jsonl")]


@pytest.mark.parametrize(
    ("world", "more"),
    [
        pytest.param(1, (), marks=pytest.mark.slow),
        pytest.param(2, ("mesh.tensor=2", "train.recompute=block"), marks=pytest.mark.exhaustive),
    ],
)
def test_auto_trains_uncompiled_where_a_block_cannot_be_compiled(tmp_path, world, more):
    """One warning for each kind of block, the losses of an eager run, and a run folder that keeps what the recipe says.

    Under tensor parallelism the blocks then run with the layers and collectives that can be traced.
    """
    rule110_data(tmp_path)
    auto, off = (run(train_with, world, str(tmp_path), compiled, *more)[0] for compiled in ("auto", "false"))
    assert auto[0] == off[0] == 0 and auto[2] == pytest.approx(off[2], rel=1e-5) and len(auto[2]) == 2, auto[1]
    assert ", compiled; 2 steps" in auto[1] and ", compiled" not in off[1]
    reason = (
        "no graph has been captured on a GPU with the messages of tensor"
        if more
        else "every pass keeps its own saved activations"
    )
    assert f"  auto    train.cuda_graphs is off (auto): {reason}" in auto[1]
    for kind in ("attention", "Gated DeltaNet"):
        assert auto[1].count(f"train.compile = auto: every {kind} block runs uncompiled") == 1
    assert auto[1].count("BackendCompilerFailed: backend='no_compiler' raised:") == 2
    assert "\n  compile: auto " in (tmp_path / "auto" / "config.yaml").read_text()
