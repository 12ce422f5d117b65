"""The launches that docs/distributed.md quotes are those that `python -m benchmarks.launches` counts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_launches_are_counted_again(tmp_path):
    out = tmp_path / "launches.json"
    command = [sys.executable, "-m", "benchmarks.launches", "--out", str(out)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=300)
    found = json.loads(out.read_text())["launches"]
    assert found == json.loads((ROOT / "benchmarks/results/launches.json").read_text())["launches"]
    text = " ".join((ROOT / "docs/distributed.md").read_text().split())
    deltanet, attention = found["gated deltanet"]["a pass"], found["attention"]["a pass"]
    assert f"{deltanet['eager']} launches eager and {deltanet['compiled']} compiled for Gated DeltaNet" in text
    assert f"{attention['eager']} and {attention['compiled']} for attention" in text
    assert f"{found['mean']['eager']} and {found['mean']['compiled']} on average" in text
    assert f"with `train.recompute: selective` {found['mean']['compiled, selective']}." in text
