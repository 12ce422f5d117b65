"""The GPU benchmark where there is no GPU: what it says, a dry run beside a stand-in for flash-linear-attention, its roofline."""

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
SCRIPT = ROOT / "benchmarks/kernels.py"
# The signature of fla-core 0.6.0, as far as the benchmark goes.
FLA = """
from sleep_kernels import gated_delta_rule


def chunk_gated_delta_rule(q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False):
    assert output_final_state
    return gated_delta_rule(q, k, v, g, beta, initial_state, scale=scale, backend="chunked")
"""


def benchmark(*words: str, path: str = "") -> str:
    environ = os.environ | {"PYTHONPATH": f"{ROOT}/kernels:{path}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False, env=environ
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    out = benchmark("--json", str(tmp_path / "out.json"))
    assert out.startswith("no GPU run\nok: chunked") and (tmp_path / "out.json").exists()


@pytest.mark.slow
def test_a_dry_run_measures_everything_beside_fla(tmp_path: Path) -> None:
    package = tmp_path / "fla/ops/gated_delta_rule"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(FLA)
    out = benchmark("--dry", "--json", str(tmp_path / "out.json"), path=str(tmp_path))
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert set(row["contenders"]) == {"triton", "chunked", "fla"} and set(row["layer"]) == {"triton", "chunked"}
    for found in row["contenders"].values():
        assert len(found["errors"]) == 8 and max(found["errors"].values()) < 1e-2
        assert min(found[key] for key in ("forward_s", "both_s", "eager_both_s", "kept_bytes", "peak_bytes")) > 0
        assert found["both_share"] == row["roofline_s"][1] / found["both_s"]
    lines = [line.split()[1:4] for line in out.splitlines()[-4:]]
    assert lines == [["share", "of", "the"], ["chunked", "/", "triton"], ["fla", "/", "triton"], ["layer,", "chunked", "/"]]  # fmt: skip


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import kernels

    return kernels


def test_roofline(kernels: Any) -> None:
    """Against times worked out by hand from the operations and bytes of a token and head, in microseconds."""
    ceilings = {"matmul_flop_per_s": 790e12, "copy_bytes_per_s": 4.3e12}
    for sizes, forward, both in (((8, 4096, 16, 16, 128), 130, 423), ((8, 2048, 16, 16, 64), 33, 90)):
        found = kernels.roofline(kernels.Shape(*sizes), ceilings)
        assert [round(1e6 * t) for t in found] == [forward, pytest.approx(both, abs=1)]


def test_what_cannot_run_is_a_result(kernels: Any) -> None:
    def breaks() -> Any:
        raise RuntimeError("Triton >= 3.4.0 and < 3.7.1")

    assert kernels.attempt(breaks, kernels.Dry()) == {"failed": "RuntimeError: Triton >= 3.4.0 and < 3.7.1"}
    row = {"shape": "1", "contenders": {"triton": {"failed": ""}, "fla": {"failed": ""}}, "layer": {}}
    assert len(kernels.table([row]).splitlines()) == 1
