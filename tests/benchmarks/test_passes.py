"""The GPU scripts for recorded passes where there is no GPU: what they say, and dry runs of all that they do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
ABSENT = "import sys; sys.modules.update(dict.fromkeys(['deepspeed', 'megatron', 'streaming', 'omegaconf', 'transformers'])); "


def script(name: str, out: Path, *words: str) -> tuple[str, dict[str, Any]]:
    """What a script prints and writes where nothing but torch, numpy and yaml is installed."""
    environ = os.environ | {"PYTHONPATH": f"{ROOT}/kernels:{ROOT}:{ROOT}/benchmarks", "OMP_NUM_THREADS": "1"}
    code = f"{ABSENT}sys.argv = {[name, '--json', str(out), *words]!r}; import {name}; sys.exit({name}.main())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environ)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("name", ["passes", "recordings"])
def test_says_that_there_is_no_gpu(name: str, tmp_path: Path) -> None:
    printed, report = script(name, tmp_path / "out.json")
    assert printed == "no GPU run\n" and report["gpu"] == "none"


@pytest.mark.slow
def test_a_dry_run_measures_a_pass_in_every_mode(tmp_path: Path) -> None:
    printed, report = script("passes", tmp_path / "out.json", "--dry")
    assert list(report["modes"]) == ["eager", "compiled", "graphs", "compiled, graphs"]
    for name, row in report["modes"].items():
        assert "failed" not in row, (name, row)
        assert row["passes"] == 7 and row["tokens_per_s"] > 0 and row["mfu"] is None and row["refused"] == 0
        assert (row["replayed"] > 0) == ("graphs" in name)
    assert printed.count("ms a pass") == 4 and "MFU n/a" in printed


@pytest.mark.slow
def test_a_dry_run_checks_recordings_of_every_kind(tmp_path: Path) -> None:
    printed, report = script("recordings", tmp_path / "out.json", "--dry")
    assert len(report["checks"]) == 4 and all(found["ok"] and found["apart"] == 0.0 for found in report["checks"])
    assert printed.count("ok: ") == 4
