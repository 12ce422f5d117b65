"""Training end to end in real processes: layouts, recompute, resume, steps skipped for non-finite gradients."""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from sleeptrain.model.counts import block_flops
from sleeptrain.parallel.config import BatchLayout
from sleeptrain.program import Draw, Sleep
from sleeptrain.recipe import load_recipe
from sleeptrain.train.setup import open_reader
from tests.distributed import run
from tests.train.jobs import SMALL, by_autograd, recipe_file, rule110_data, text_data, trained

TEXT = ["sleep.window=16", "sleep.passes=3", "sleep.loop.trigger=every", "train.batch=8", "checkpoint.every=0"]
MUON = ["optim.name=muon", "optim.lr=0.02", "optim.adam_lr=0.003", "optim.ns_dtype=float32"]


def losses(rows):
    return [row["loss"] for row in rows]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("runs")
    text_data(made)
    rule110_data(made)
    recipe_file(made)
    return made


def in_one_process(folder: str):
    """All trainings on one process, in one launch."""
    where = Path(folder)
    found = {"plain": trained(where, "plain", where / "text", TEXT)}
    found["micro"] = trained(where, "micro", where / "text", [*TEXT, "train.micro=2"])
    for policy in ("block", "pass", "window"):
        found[policy] = trained(where, policy, where / "text", [*TEXT, f"train.recompute={policy}"])
    found["offload"] = trained(where, "offload", where / "text", [*TEXT, "train.recompute=pass", "train.offload=true"])
    found["autograd"] = trained(where, "autograd", where / "text", [*TEXT, "train.recompute=window"], spoil=by_autograd)
    trained(where, "resumed", where / "text", [*TEXT, "train.steps=4", "optim.schedule.name=constant"])
    found["resumed"] = trained(where, "resumed", where / "text", [*TEXT, "optim.schedule.name=constant"])
    found["whole"] = trained(where, "whole", where / "text", [*TEXT, "optim.schedule.name=constant"])
    found["muon"] = trained(where, "muon", where / "text", [*TEXT, *MUON])
    found["bf16"] = trained(where, "bf16", where / "text", [*TEXT, "train.precision=bf16"])
    found["draw"] = trained(where, "draw", where / "text", [*TEXT, "sleep.passes={low: 1, high: 3}"])
    budget = [*TEXT, "train.steps=null", "train.tokens=2000", "optim.schedule.name=constant"]
    found["budget"] = trained(where, "budget", where / "text", budget)
    return found


def in_two_processes(folder: str):
    where = Path(folder)
    found = {"plain": trained(where, "plain-2", where / "text", TEXT)}
    found["zero2"] = trained(where, "zero2-2", where / "text", [*TEXT, "mesh.zero=2", "train.micro=2"])
    found["muon"] = trained(where, "muon-2", where / "text", [*TEXT, *MUON])
    found["draw"] = trained(where, "draw-2", where / "text", [*TEXT, "sleep.passes={low: 1, high: 3}"])
    found["spoiled"] = trained(where, "spoiled-2", where / "text", [*TEXT, "train.steps=4"], spoil=spoil_second_step)
    return found


def spoil_second_step(setup):
    """Set the gradient of one weight on rank 1 to NaN in the second step."""
    weight = setup.engine.module.layers[1].mlp.up.weight
    count = {"steps": 0}
    before: list[torch.Tensor] = []
    step = setup.engine.step

    def spoiling(gradient):
        return gradient * math.nan if setup.process.rank == 1 and count["steps"] == 1 else gradient

    def watched(*args, **kwargs):
        held = [p.detach().clone() for p in setup.engine.module.parameters()]
        report = step(*args, **kwargs)
        count["steps"] += 1
        if report.skipped:
            assert all(torch.equal(p, q) for p, q in zip(setup.engine.module.parameters(), held, strict=True))
            before.append(held[0])
        return report

    weight.register_hook(spoiling)
    object.__setattr__(setup.engine, "step", watched)


@pytest.fixture(scope="module")
def one(folder):
    return run(in_one_process, 1, str(folder), timeout=300)[0]


@pytest.fixture(scope="module")
def two(folder, one):
    return run(in_two_processes, 2, str(folder), timeout=300)[0]


def test_loss_falls_and_every_step_is_in_the_metrics(one):
    rows, _ = one["plain"]
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.1
    keys = {
        "step",
        "tokens",
        "loss",
        "grad_norm",
        "lr",
        "tokens_per_second",
        "loss_by_window",
        "residual",
        "state_norm",
        "mfu",
    }
    assert keys <= rows[0].keys() and rows[0]["mfu"] is rows[0]["hfu"] is None
    assert len({row["targets"] for row in rows}) > 1  # the number of targets varies
    real = [sum(row["tokens_by_source"].values()) for row in rows]
    assert [row["tokens"] for row in rows] == real
    for row, before, after in zip(rows, [0, *real], real, strict=False):
        assert row["padding"] == pytest.approx(1 - (after - before) / (8 * 48))
        assert row["tokens_per_second"] * row["seconds"] == pytest.approx(after - before)
    assert max(row["padding"] for row in rows) > 0  # in the last row of an epoch


def test_flops_are_those_of_the_tokens_that_passes_read(folder, one):
    """The first step's rows, one by one: the FLOPs of the layers that the model has, for the tokens of every pass."""
    rows, _ = one["plain"]
    job = load_recipe(recipe_file(folder), [*SMALL, *TEXT, f"data.sources=[{{path: {folder / 'text'}}}]"]).value
    reader = open_reader(job, BatchLayout(1, 8, 1, 1), 0)
    [batch] = reader.next_step()
    reader.close()
    attention, deltanet = (block_flops(job.model, letter) for letter in "AG")
    flops = 0.0
    for tokens, starts in zip(batch.tokens.tolist(), batch.starts.cumsum(1).tolist(), strict=True):
        document = [n if token != reader.manifest.pad else None for token, n in zip(tokens, starts, strict=True)]
        for start in (0, 16, 32):
            window = [n for n in document[start : start + 16] if n is not None]
            ended = [n for n in window if n == starts[start + 15]]
            passes = [window] if start == 32 else [window, ended, ended]
            for read in passes:
                pairs = sum(k * (k + 1) / 2 for k in Counter(read).values())
                flops += 3 * (len(read) * (attention.token + deltanet.token) + pairs * attention.pair)
            if start != 32:  # nothing reads the features of the last pass
                flops -= 2 * len(ended) * (deltanet.token - deltanet.state)
            flops += 3 * len(window) * 2 * job.model.width * reader.manifest.vocab
    assert rows[0]["flops_per_second"] * rows[0]["seconds"] == pytest.approx(flops)


def test_a_run_ends_where_the_mean_rows_reach_its_budget_of_real_tokens(one):
    rows, _ = one["budget"]
    assert [row["loss"] for row in rows] == losses(one["whole"][0])[: len(rows)]
    assert rows[-2]["tokens"] < 2000 <= rows[-1]["tokens"] and len(rows) == 6


def test_recompute_is_bit_identical(one):
    for policy in ("block", "pass", "window", "offload"):
        assert losses(one[policy][0]) == losses(one["plain"][0])
        for name, weight in one["plain"][1].items():
            assert torch.equal(weight, one[policy][1][name]), (policy, name)


def test_the_checkpointed_executor_matches_plain_autograd(one):
    """Over ten steps under ZeRO 1."""
    assert losses(one["plain"][0]) == pytest.approx(losses(one["autograd"][0]), rel=1e-6)
    norms = [[row["grad_norm"] for row in one[kind][0]] for kind in ("plain", "autograd")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_resume_continues_the_curve_exactly(one):
    assert losses(one["resumed"][0]) == losses(one["whole"][0])
    for key in ("grad_norm", "tokens", "padding"):
        assert [row[key] for row in one["resumed"][0]] == [row[key] for row in one["whole"][0]], key
    for name, weight in one["whole"][1].items():
        assert torch.equal(weight, one["resumed"][1][name]), name


@pytest.mark.parametrize(
    ("kind", "other"), [("plain", "plain"), ("plain", "zero2"), ("muon", "muon"), ("draw", "draw")]
)
def test_two_processes_match_one(one, two, kind, other):
    assert losses(two[other][0]) == pytest.approx(losses(one[kind][0]), rel=1e-5)
    assert [row["tokens"] for row in two[other][0]] == [row["tokens"] for row in one[kind][0]]
    norms, expected = ([row["grad_norm"] for row in result[0]] for result in (two[other], one[kind]))
    assert norms == pytest.approx(expected, rel=1e-4)


def test_micro_batches_do_not_change_the_loss(one):
    assert losses(one["micro"][0]) == pytest.approx(losses(one["plain"][0]), rel=1e-5)


def test_bf16_follows_fp32(one):
    assert losses(one["bf16"][0]) == pytest.approx(losses(one["plain"][0]), rel=0.03)
    assert losses(one["bf16"][0]) != losses(one["plain"][0])


def test_passes_drawn_by_step_are_logged(one):
    drawn = [Sleep(passes=Draw(1, 3)).passes_at(step, seed=0) for step in range(10)]
    assert [row["passes"] for row in one["draw"][0]] == drawn and len(set(drawn)) > 1


def test_a_nan_on_one_rank_skips_the_step_on_all_ranks(two):
    assert [row["skipped"] for row in two["spoiled"][0]] == [False, True, False, False]
    assert two["spoiled"][0][1]["grad_norm"] is None
    assert all(torch.isfinite(w).all() for w in two["spoiled"][1].values())
