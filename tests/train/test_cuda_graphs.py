"""`train.cuda_graphs` in whole runs: with a recorder that needs no GPU the results are bit-identical; without a GPU it is refused."""

from pathlib import Path

import pytest
import torch

from sleeptrain.errors import UserError
from sleeptrain.recipe import load_recipe
from sleeptrain.train import build_model
from sleeptrain.train.setup import check_device
from tests.distributed import run
from tests.execute.eager_replay import CountingReplay
from tests.train.jobs import recipe_file, text_data, trained

STEPS = [
    "sleep.window=16", "sleep.passes={low: 1, high: 3}", "sleep.loop.trigger=every", "train.batch=8", "train.micro=2", "train.steps=5",
    "train.recompute=pass", "checkpoint.every=0", "model.layers=AG", "eval.every=2", "eval.samples=9",
]  # fmt: skip

TENSOR = (
    "mesh.tensor=2", "optim.name=adamw", "model.attention.kv_heads=2", "model.deltanet.key_heads=2",
)  # fmt: skip


def train_with_and_without_graphs(folder, changes):
    """Metrics and weights with CUDA graphs and without, and the numbers of captures and replays."""
    where, recorders = Path(folder), []

    class RegisteredReplay(CountingReplay):
        def __init__(self):
            super().__init__()
            recorders.append(self)

    build_model.CudaGraphRecorder = RegisteredReplay  # not restored: the process ends with the test
    results = []
    for graphs in ("true", "false"):
        name = f"graphs-{graphs}"
        rows, weights = trained(where, name, where / "text", [*STEPS, *changes, f"train.cuda_graphs={graphs}"])
        keys = ("loss", "grad_norm", "residual", "state_norm", "loss_by_window")
        keys += ("eval_loss", "eval_loss_by_window", "eval_accuracy")
        results.append(([{key: row.get(key) for key in keys} for row in rows], weights))
    (recorder,) = recorders
    return results, recorder.captured, recorder.replayed


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        ("mesh.zero=1",),
        ("train.precision=bf16",),
        ("mesh.zero=2", "train.precision=bf16"),
        pytest.param(TENSOR, marks=pytest.mark.exhaustive),
        (*TENSOR, "mesh.sequence=true"),
    ],
)
def test_training_with_cuda_graphs_is_bit_identical(tmp_path, changes):
    """Two processes with two micro-batches each, a drawn number of passes, and padded rows; evaluated, too."""
    text_data(tmp_path)
    recipe_file(tmp_path)
    ranks = run(train_with_and_without_graphs, 2, str(tmp_path), changes)
    (rows, weights), (expected_rows, expected_weights) = ranks[0][0]
    assert rows == expected_rows and len(rows) == 5 and rows[0]["loss"] != rows[4]["loss"]
    assert [row["eval_loss"] is not None for row in rows] == [False, True, False, True, True]
    assert weights.keys() == expected_weights.keys()
    assert all(torch.equal(weights[name], weight) for name, weight in expected_weights.items())
    assert all(0 < captured < 24 and replayed > 2 * captured for _, captured, replayed in ranks)


def test_cuda_graphs_are_refused_without_a_gpu():
    job = load_recipe("rule110-tiny", ["train.cuda_graphs=true", "train.recompute=pass"]).value
    with pytest.raises(UserError, match=r"^train.cuda_graphs = true needs a GPU, and torch sees none here"):
        check_device(job, torch.device("cpu"))
    check_device(job, torch.device("cuda", 0))
