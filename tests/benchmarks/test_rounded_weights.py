"""The benchmark of rounded weights measures the losses that `evaluate` measures, and its kinds of weights are the whole model."""

import json
import sys

import pytest

from benchmarks import rounded_weights
from sleeptrain.evaluate.runs import evaluate
from sleeptrain.recipe.load_trained import open_trained
from tests.cli.runs import untrained
from tests.train.jobs import rule110_data


def test_losses_are_those_of_evaluation(tmp_path, monkeypatch):
    run, out = untrained(tmp_path, "run", rule110_data(tmp_path), "sleep.window=9"), tmp_path / "losses.json"
    monkeypatch.setattr(sys, "argv", ["rounded_weights", "--samples", "16", "--out", str(out), str(run)])
    rounded_weights.main()
    row = json.loads(out.read_text())["losses"][str(run)]
    results, _ = evaluate([str(run)], None, None, 16, 16, quiet=True, fp32=True)
    assert row["nothing"] == pytest.approx(results[0].measured[0].loss, rel=1e-6)
    small, others, everything = (
        rounded_weights.KINDS[kind] for kind in ("norms, A_log and dt_bias", "all others", "all")
    )
    names = set()
    for name, weight in open_trained(run).model.named_parameters():
        assert everything(weight) and small(weight) != others(weight), name
        if small(weight):
            names.add(name.rsplit(".", 2)[-2 if name.endswith(".weight") else -1])
    assert names == {"norm1", "norm2", "norm", "q_norm", "k_norm", "A_log", "dt_bias"}
