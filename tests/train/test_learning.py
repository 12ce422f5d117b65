"""Learning across eviction: a hybrid solves a step of Rule 110 on evicted strings; attention alone can only guess."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sleep_data import shards
from sleep_data.tasks import make
from sleeptrain.data.config import Data, Source
from sleeptrain.data.evaluation import Evaluation
from sleeptrain.evaluate.runs import evaluate
from tests.distributed import run
from tests.train.jobs import recipe_file, trained

# Two strings of 12 cells, one step of the rule, one pass. With 4096 strings the held-out ones are unseen in training.
TASK = {"strings": 2, "width": 12, "transitions": 1, "variant": "paper", "holdout": 8}
MUON = ["optim.name=muon", "optim.lr=0.02", "optim.adam_lr=0.003", "optim.schedule.warmup=20"]
COMMON = ["sleep.window=12", "sleep.passes=1", "train.batch=32", "checkpoint.every=0", *MUON]
RUNS = {"hybrid": ["model.layers=AG", "train.steps=500"], "attention": ["model.layers=AA", "train.steps=100"]}


def learn(folder: str) -> dict[str, Any]:
    """Train both models and evaluate them on held-out strings; returns the summary at t = 1."""
    where, data = Path(folder), Path(folder, "data")
    shards.build(make("rule110", TASK), data, {"train": 20000, "test": 1000}, 0)
    recipe_file(where)
    summaries = {}
    for name, overrides in RUNS.items():
        trained(where, name, data, [*COMMON, *overrides])
        (entry,), manifest = evaluate([str(where / name)], None, None, 100, None, quiet=True)
        summaries[name] = entry.measured[0].by_value[1].summary()
    targets = np.concatenate([b.targets.numpy() for b in Evaluation(Data([Source(str(data))]), micro=100)])
    _, counts = np.unique(targets[targets >= 0], return_counts=True)
    return summaries | {"majority": counts.max() / counts.sum(), "expected": manifest.baselines["1"]["majority"]}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(learn, 1, str(tmp_path_factory.mktemp("learning")), timeout=580)[0]


@pytest.mark.slow
def test_the_hybrid_solves_a_step_of_rule_110(measured: dict[str, Any]) -> None:
    assert measured["hybrid"]["accuracy"] > 0.99


@pytest.mark.slow
def test_attention_alone_can_only_guess_evicted_strings(measured: dict[str, Any]) -> None:
    low, high = measured["attention"]["interval"]
    # The majority of this split: its 512 strings repeat, so its share of ones differs slightly from that of all strings.
    assert low <= measured["majority"] <= high
    assert measured["majority"] == pytest.approx(measured["expected"], abs=0.05)
    assert measured["attention"]["tokens"] == 2000
