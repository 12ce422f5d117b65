"""`train.cuda_graphs` in whole runs: with a recorder that needs no GPU it trains the same bits; without a GPU it is refused."""

from pathlib import Path

import pytest
import torch

from sleeptrain.config import UserError
from sleeptrain.recipe import load_recipe
from sleeptrain.train import build_model
from sleeptrain.train.setup import check_device
from tests.distributed import run
from tests.execute.eager_replay import CountingReplay
from tests.train.jobs import recipe_file, text_data, trained

STEPS = [
    "sleep.window=16", "sleep.passes={low: 1, high: 3}", "sleep.loop.trigger=every", "train.batch=8", "train.micro=2", "train.steps=5",
    "train.recompute=pass", "checkpoint.every=0", "model.layers=AG",
]  # fmt: skip


def both(folder, changes):
    """Losses and weights with recordings and without, and how many were made."""
    where, made = Path(folder), []

    class Noted(CountingReplay):
        def __init__(self):
            super().__init__()
            made.append(self)

    build_model.CudaGraphRecorder = Noted  # this process is the test's own
    found = []
    for graphs in ("true", "false"):
        name = "-".join([*changes, graphs])
        rows, weights = trained(where, name, where / "text", [*STEPS, *changes, f"train.cuda_graphs={graphs}"])
        kept = ("loss", "grad_norm", "residual", "state_norm", "loss_by_window")
        found.append(([{key: row[key] for key in kept} for row in rows], weights))
    (recorder,) = made
    return found, recorder.captured, recorder.replayed


@pytest.mark.slow
@pytest.mark.parametrize("changes", [("mesh.zero=1",), ("mesh.zero=2", "train.precision=bf16")])
def test_recorded_passes_train_the_same_bits(tmp_path, changes):
    """Two processes, two micro-batches each; the number of passes is drawn; some rows are padded."""
    text_data(tmp_path)
    recipe_file(tmp_path)
    (found, recorded, replayed), (_, others, more) = run(both, 2, str(tmp_path), changes)
    (rows, weights), (expected, wanted) = found
    assert rows == expected and len(rows) == 5 and rows[0]["loss"] != rows[4]["loss"]
    assert weights.keys() == wanted.keys() and all(torch.equal(weights[name], wanted[name]) for name in wanted)
    assert 0 < recorded < 24 and 0 < others < 24 and replayed > 2 * recorded and more > 2 * others


def test_without_a_gpu_it_is_refused():
    job = load_recipe("rule110-tiny", ["train.cuda_graphs=true", "train.recompute=pass"]).value
    with pytest.raises(UserError, match=r"^train.cuda_graphs = true needs a GPU, and torch sees none here"):
        check_device(job, torch.device("cpu"))
    check_device(job, torch.device("cuda", 0))
