"""Learning text: on held-out source files of the standard library a small model is better than the frequencies of pairs of bytes."""

from __future__ import annotations

import sysconfig
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sleep_data.build import build
from sleep_data.tasks import make
from sleeptrain.data.config import Data, Source
from sleeptrain.data.evaluation import Evaluation
from tests.distributed import run
from tests.train.jobs import recipe_file, trained

BOS, PAD = 256, 257
MODEL = ["model.width=64", "model.layers=GAG", "model.mlp.hidden=160", "model.deltanet.head_dim=32"]
TRAINING = [
    "sleep.window=32", "sleep.loop.trigger=every", "data.row=128", "train.batch=16", "train.steps=100", "checkpoint.every=0",
    "optim.name=muon", "optim.lr=0.02", "optim.adam_lr=0.01", "optim.schedule.warmup=10", "eval.every=100",
]  # fmt: skip


def stream(data: Path, split: str) -> np.ndarray:
    """All tokens of a split in order, without padding, of rows that hold several documents."""
    rows = Evaluation(Data([Source(str(data))], row=128), micro=64, split=split, window=32)
    tokens = np.concatenate([batch.tokens.flatten().numpy() for batch in rows])
    return tokens[tokens != PAD]


def documents(tokens: np.ndarray) -> set[bytes]:
    starts = [*np.flatnonzero(tokens == BOS).tolist(), len(tokens)]
    return {bytes(tokens[start + 1 : stop].tolist()) for start, stop in pairwise(starts)}


def baselines(train: np.ndarray, test: np.ndarray) -> tuple[float, float]:
    """Nats per byte of the held-out bytes by the training frequencies of bytes, and of bytes after the one before them.

    Every byte has one more occurrence; a byte is counted in proportion to its frequency, once, after each byte.
    """
    unigrams = np.bincount(train[train != BOS], minlength=256) + 1.0
    unigram = unigrams / unigrams.sum()
    pairs = np.zeros((PAD, 256))
    before, after = train[:-1], train[1:]
    np.add.at(pairs, (before[after != BOS], after[after != BOS]), 1)
    bigram = (pairs + unigram) / (pairs.sum(1, keepdims=True) + 1)
    before, after = test[:-1], test[1:]
    before, after = before[after != BOS], after[after != BOS]
    return float(-np.log(unigram[after]).mean()), float(-np.log(bigram[before, after]).mean())


def learn(folder: str) -> dict[str, Any]:
    """Train with one pass and with two; the losses on the held-out documents, and the baselines."""
    where, data = Path(folder), Path(folder, "data")
    library = Path(sysconfig.get_path("stdlib"))
    paths = [str(library / name) for name in ("email", "json", "logging", "unittest")]
    build(make("text", {"paths": paths, "holdout": 8, "block": 8192}), data, {"train": None, "test": None}, 0)
    recipe_file(where)
    train, test = stream(data, "train"), stream(data, "test")
    assert documents(train) and documents(test) and not documents(train) & documents(test)
    unigram, bigram = baselines(train, test)
    found: dict[str, Any] = {"unigram": unigram, "bigram": bigram}
    for passes in (1, 2):
        rows, _ = trained(where, f"n{passes}", data, [*MODEL, *TRAINING, f"sleep.passes={passes}"])
        found[f"N={passes}"] = rows[-1]["eval_loss"]
    return found


@pytest.mark.slow
def test_held_out_text_is_predicted_better_than_by_pairs_of_bytes(tmp_path: Path) -> None:
    found = run(learn, 1, str(tmp_path), timeout=580)[0]
    assert found["bigram"] < found["unigram"]
    assert found["N=1"] < 0.95 * found["bigram"] and found["N=2"] < 0.95 * found["bigram"], found
