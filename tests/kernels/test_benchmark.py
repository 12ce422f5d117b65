"""benchmarks/kernels.py without a GPU: its message, a dry run beside a stand-in for flash-linear-attention, its roofline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from sleep_kernels import verified

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks/kernels.py"
# The arguments of fla-core 0.6.0 that the benchmark uses.
FLA = """
from sleep_kernels import gated_delta_rule


def chunk_gated_delta_rule(q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False):
    assert output_final_state
    return gated_delta_rule(q, k, v, g, beta, initial_state, scale=scale, backend="chunked")
"""


def benchmark(*words: str, path: str = "") -> str:
    environ = os.environ | {"PYTHONPATH": f"{ROOT}/kernels:{path}", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False, env=environ
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return process.stdout


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_message_says_so(tmp_path: Path) -> None:
    out = benchmark("--json", str(tmp_path / "out.json"))
    assert out.startswith("no GPU run\nok: chunked") and (tmp_path / "out.json").exists()


@pytest.mark.exhaustive
def test_dry_run_measures_all_contenders(tmp_path: Path) -> None:
    package = tmp_path / "fla/ops/gated_delta_rule"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(FLA)
    out = benchmark("--dry", "--json", str(tmp_path / "out.json"), path=str(tmp_path))
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert row["self_test"]["ok"] and row["self_test"]["report"].startswith("ok: triton") and "failed" not in row
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
    """Against times computed by hand from the operations and bytes per token and head, in microseconds."""
    ceilings = {"matmul_flop_per_s": 790e12, "copy_bytes_per_s": 4.3e12}
    for sizes, forward, both in (((8, 4096, 16, 16, 128), 130, 423), ((8, 2048, 16, 16, 64), 33, 90)):
        found = kernels.roofline(kernels.Shape(*sizes), ceilings)
        assert [round(1e6 * t) for t in found] == [forward, pytest.approx(both, abs=1)]


def test_a_contender_that_fails_is_reported(kernels: Any) -> None:
    def breaks() -> Any:
        raise RuntimeError("Triton >= 3.4.0 and < 3.7.1")

    assert kernels.attempt(breaks, kernels.Dry()) == {"failed": "RuntimeError: Triton >= 3.4.0 and < 3.7.1"}
    row = {"shape": "1", "contenders": {"triton": {"failed": ""}, "fla": {"failed": ""}}, "layer": {}}
    assert len(kernels.table([row]).splitlines()) == 1


def test_a_lost_device_is_reported(kernels: Any) -> None:
    class Lost(kernels.Dry):  # type: ignore[misc, name-defined]
        def settle(self) -> None:
            raise RuntimeError("illegal address")

    def breaks() -> Any:
        raise ValueError("no")

    assert kernels.attempt(breaks, Lost()) == {"failed": "ValueError: no; RuntimeError: illegal address"}
    assert kernels.attempt(dict, Lost()) == {"failed": "RuntimeError: illegal address"}


def test_a_shape_that_fails_does_not_affect_others(
    kernels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, good = tmp_path / "out.json", {key: 2.0 for key in ("forward_s", "both_s", "eager_both_s", "peak_bytes")}
    good |= {"forward_share": 0.25, "both_share": 0.5}
    written = []

    def verdict(shape: Any, machine: Any) -> Any:
        if out.exists():
            written.append([row["shape"] for row in json.loads(out.read_text())["rows"]])
        if shape.time == 1:
            raise RuntimeError("OutOfResources")
        return {"ok": True, "report": ""}

    def rules(shape: Any, *_: Any) -> Any:
        yield "triton", good
        if shape.time == 2:
            raise RuntimeError("out of memory")
        yield "chunked", good

    for name, stand_in in {"verdict": verdict, "rules": rules, "layer": lambda *_: good}.items():
        monkeypatch.setattr(kernels, name, stand_in)
    report: dict[str, Any] = {}
    assert not kernels.run(kernels.Dry(), [(1, time, 1, 1, 16) for time in (1, 2, 3)], False, report, out)
    assert json.loads(out.read_text())["rows"] == json.loads(json.dumps(report["rows"]))
    assert written == [["1x1x1x1x16"], ["1x1x1x1x16", "1x2x1x1x16"]], "results are written after every shape"
    first, second, third = report["rows"]
    assert first["self_test"] == {"failed": "RuntimeError: OutOfResources"} and set(first["contenders"]) == {
        "triton",
        "chunked",
    }
    assert second["failed"] == "RuntimeError: out of memory" and set(second["contenders"]) == {"triton"}
    assert third["self_test"]["ok"] and "failed" not in third
    lines = capsys.readouterr().out.split("\n\n")[-1].splitlines()
    assert [line.split()[0] for line in lines[1:]] == [*3 * ["1x1x1x1x16"], *2 * ["1x2x1x1x16"], *3 * ["1x3x1x1x16"]]
    assert kernels.run(kernels.Dry(), [(1, 3, 1, 1, 16)], False, {}, None)


def test_replays_are_enqueued_before_any_is_waited_for(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a fake device that records its calls, and whose clock advances by the graph's number at every replay."""
    recorded: list[str] = []
    clock = [0.0]

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.at = float("nan")

        def record(self) -> None:
            self.at = clock[0]
            recorded.append("event")

        def elapsed_time(self, other: Event) -> float:
            return other.at - self.at

    class Graph:
        made = 0

        def __init__(self) -> None:
            Graph.made += 1
            self.milliseconds = float(Graph.made)

        def replay(self) -> None:
            clock[0] += self.milliseconds
            recorded.append(f"replay {self.milliseconds:g}")

    stand_ins = {
        "Event": Event,
        "CUDAGraph": Graph,
        "Stream": nullcontext,
        "synchronize": lambda: recorded.append("wait"),
    }
    stand_ins |= {"stream": lambda stream: nullcontext(), "graph": lambda graph, stream: nullcontext()}
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    calls = [lambda i=i: recorded.append(f"call {i}") for i in range(3)]
    seconds = kernels.Gpu(replays=7).seconds(calls)
    begin = recorded.index("event")
    around = [["event", f"replay {1 + i % 3}", "event"] for i in range(10)]
    assert recorded[begin:] == [*(word for words in around for word in words), "wait"]
    assert seconds == 2e-3, "the median of 1, 2, 3, 1, 2, 3, 1 ms"


@pytest.mark.exhaustive
def test_dry_run_of_launch_parameters(tmp_path: Path) -> None:
    environ = os.environ | {"PYTHONPATH": f"{ROOT}/kernels", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        str(ROOT / "benchmarks/launch_choices.py"),
        "--dry",
        "--json",
        str(tmp_path / "out.json"),
    ]
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    assert process.returncode == 0, process.stderr[-2000:]
    kernels = json.loads((tmp_path / "out.json").read_text())["kernels"]
    assert kernels.keys() == set(verified.KERNELS) - {"norm", "delta_inputs"}
    for rows in kernels.values():
        assert len(rows) == 2 and rows[0]["both, ratio"] == 1 and not any("failed" in row for row in rows)
        assert all(row["error / bound"] < 1 for row in rows)
