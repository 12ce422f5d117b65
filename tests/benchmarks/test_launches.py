"""The launches that docs/distributed.md quotes are those that `python -m benchmarks.launches` counts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import graph_launches

ROOT = Path(__file__).parents[2]


def test_a_pass_is_two_replays_of_cuda_graphs() -> None:
    """One forward, and one of recompute with backward; the losses of windows are others."""
    passes, replays, beside = graph_launches.counts(2, "model.layers=GA")
    assert passes == 3  # two over the first window, which sleeps, and one over the last
    assert replays == {"a forward pass": passes, "a backward pass": passes, "the head": 2} and beside > 0
    found = json.loads((ROOT / "benchmarks/results/launches.json").read_text())["launches"]["cuda graphs"]
    assert found["replays of a pass"] == {"forward": 1, "backward": 1} and found["replays of the loss of a window"] == 1


@pytest.mark.slow
def test_launches_are_counted_again(tmp_path):
    out = tmp_path / "launches.json"
    command = [sys.executable, "-m", "benchmarks.launches", "--out", str(out)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=300)
    found = json.loads(out.read_text())["launches"]
    assert found == json.loads((ROOT / "benchmarks/results/launches.json").read_text())["launches"]
    text = " ".join((ROOT / "docs/distributed.md").read_text().split())
    assert f"takes {found['cuda graphs']['operators beside them, of a pass']:.0f} small operators a pass" in text
    deltanet, attention = found["gated deltanet"]["a pass"], found["attention"]["a pass"]
    assert f"{deltanet['eager']} launches eager and {deltanet['compiled']} compiled for Gated DeltaNet" in text
    assert f"{attention['eager']} and {attention['compiled']} for attention" in text
    assert f"{found['mean']['eager']} and {found['mean']['compiled']} on average" in text
    assert f"with `train.recompute: selective` {found['mean']['compiled, selective']}." in text
