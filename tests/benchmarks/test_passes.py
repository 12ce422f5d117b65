"""The GPU benchmarks of CUDA graphs without a GPU: their output, dry runs and reports of failures."""

from __future__ import annotations

import importlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
ABSENT = "import sys; sys.modules.update(dict.fromkeys(['deepspeed', 'megatron', 'streaming', 'omegaconf', 'transformers'])); "


def script(name: str, out: Path, *words: str) -> tuple[str, dict[str, Any]]:
    """The output and report of a script where only torch, numpy and yaml can be imported."""
    environ = os.environ | {"PYTHONPATH": f"{ROOT}/kernels:{ROOT}:{ROOT}/benchmarks", "OMP_NUM_THREADS": "1"}
    code = f"{ABSENT}sys.argv = {[name, '--json', str(out), *words]!r}; import {name}; sys.exit({name}.main())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environ)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("name", ["passes", "cuda_graphs"])
def test_without_a_gpu_nothing_is_run(name: str, tmp_path: Path) -> None:
    printed, report = script(name, tmp_path / "out.json")
    assert printed == "no GPU run\n" and report["gpu"] == "none"


@pytest.mark.slow
def test_a_dry_run_measures_a_pass_in_every_mode(tmp_path: Path) -> None:
    printed, report = script("passes", tmp_path / "out.json", "--dry")
    assert list(report["modes"]) == ["eager", "compiled", "graphs", "compiled, graphs"]
    for name, row in report["modes"].items():
        assert "failed" not in row, (name, row)
        assert row["passes"] == 7 and row["tokens_per_s"] > 0 and row["mfu"] is None and row["refused"] == 0
        assert (row["replayed"] > 0) == ("graphs" in name) and 0 < row["launch_at_most_s"] <= row["step_s"]
    assert printed.count("ms a pass") == 4 and "MFU n/a" in printed


@pytest.mark.slow
def test_a_dry_run_checks_graphs_under_all_sleep_options(tmp_path: Path) -> None:
    printed, report = script("cuda_graphs", tmp_path / "out.json", "--dry")
    assert len(report["checks"]) == 4 and all(
        result["ok"] and result["difference"] == 0.0 for result in report["checks"]
    )
    assert printed.count("ok: ") == 4


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def test_a_failed_check_does_not_stop_the_others(
    module: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cuda_graphs, out, written = module("cuda_graphs"), tmp_path / "out.json", []
    results = iter(
        [{"difference": 0.0, "replayed": 3}, RuntimeError("illegal address"), {"difference": 1.0, "replayed": 3}]
    )

    def compare(*_: Any) -> Any:
        written.append(len(json.loads(out.read_text())["checks"]) if out.exists() else 0)
        result = next(results, {"difference": 0.0, "replayed": 0})
        if isinstance(result, Exception):
            logging.getLogger("sleeptrain").warning("a replay differs")
            raise result
        return result

    monkeypatch.setattr(cuda_graphs, "compare", compare)
    monkeypatch.setattr("sys.argv", ["cuda_graphs", "--dry", "--json", str(out)])
    assert cuda_graphs.main() == 1
    checks = json.loads(out.read_text())["checks"]
    assert [result["ok"] for result in checks] == [True, False, False, False] and written == [0, 1, 2, 3]
    assert checks[1]["failed"] == "RuntimeError: illegal address" and checks[1]["warnings"] == ["a replay differs"]
    assert not any(isinstance(handler, cuda_graphs.Warnings) for handler in logging.getLogger("sleeptrain").handlers)
    printed = capsys.readouterr().out
    assert printed.count("NOT OK: ") == 3 and "failed: RuntimeError: illegal address a replay differs" in printed


def test_nan_losses_fail_a_check(
    module: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cuda_graphs = module("cuda_graphs")
    trainer = cuda_graphs.trainer

    def with_nan(*arguments: Any) -> Any:
        made = trainer(*arguments)
        if arguments[-1] is not None:
            with torch.no_grad():
                next(made.model.parameters()).fill_(float("nan"))
        return made

    monkeypatch.setattr(cuda_graphs, "trainer", with_nan)
    result = cuda_graphs.check("hard, every", torch.float32, dry=True)
    assert not result["ok"] and result["difference"] == float("inf") and "NOT OK" in capsys.readouterr().out


def test_a_failed_mode_does_not_stop_the_others(
    module: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    passes, out, written = module("passes"), tmp_path / "out.json", []

    def mode(name: str, *_: Any) -> Any:
        written.append(list(json.loads(out.read_text())["modes"]) if out.exists() else [])
        if name == "eager":
            raise RuntimeError("out of memory")
        return {"passes": 1, "step_s": 0.2, "launch_at_most_s": 0.1, "tokens_per_s": 1.0, "mfu": 0.5}

    monkeypatch.setattr(passes, "mode", mode)
    monkeypatch.setattr("sys.argv", ["passes", "--dry", "--json", str(out)])
    assert passes.main() == 0
    names = list(passes.MODES)
    assert written == [names[:count] for count in range(4)]
    report = json.loads(out.read_text())
    assert report["modes"]["eager"] == {"failed": "RuntimeError: out of memory"} and report["parameters"] > 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["eager", "failed:", "RuntimeError:", "out", "of", "memory"]
    assert all("200.00 ms a pass, at most    100.00 ms of it launching" in line for line in printed[1:])


def test_peaks_are_reset_after_the_warm_up(module: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a stand-in device whose peaks grow by one with every step and are reset on request."""
    passes, count = module("passes"), [0]

    class Stepper:
        def step(self, seed: int) -> None:
            count[0] += 1

    stand_ins: dict[str, Callable[..., Any]] = {
        "max_memory_allocated": lambda: count[0], "max_memory_reserved": lambda: 100 + count[0],
        "empty_cache": lambda: None, "synchronize": lambda: None,
        "reset_peak_memory_stats": lambda: count.__setitem__(0, 0),
    }  # fmt: skip
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    found = passes.measure(Stepper(), 3, torch.device("cuda"))
    assert (found["warm_up_peak_bytes"], found["peak_bytes"]) == (4, 3)
    assert (found["warm_up_peak_reserved_bytes"], found["peak_reserved_bytes"]) == (104, 103)
    assert "peak_bytes" not in passes.measure(Stepper(), 1, torch.device("cpu"))
