"""benchmarks/gpu.sh with a fake interpreter that records its arguments."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "kernels/sleep_kernels/verdicts.json"
CALLS = {
    "assemblers": ["{root}/benchmarks/assemblers.py --json {out}/assemblers.json --triton a --triton b --ptxas c"],
    "verify": ["-m sleep_kernels.self_test --ship", "{root}/benchmarks/cuda_graphs.py --json {out}/cuda_graphs.json"],
    "tests": ["-m sleep_kernels.self_test", "-m pytest -v -rs -m gpu -p no:cacheprovider tests/gpu"],
    "training": ["{root}/benchmarks/training.py --out {out}"],
    "measure": ["{root}/benchmarks/kernels.py --json {out}/kernels.json --until 400"],
    "choices": ["{root}/benchmarks/launch_choices.py --json {out}/launch_choices.json"],
    "passes": ["{root}/benchmarks/passes.py --json {out}/passes.json"],
}
TEXTS = {
    "verify": ["self_test", "cuda_graphs"],
    "tests": ["self_test", "tests"],
    "measure": ["kernels"],
    "choices": ["launch_choices"],
}


def gpu(tmp_path: Path, *words: str, behaviour: str = "") -> tuple[int, list[str], str]:
    """Exit status, calls of the interpreter, and standard output."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/bash\necho "$*" >> {tmp_path}/calls\necho ran "$*"\n{behaviour}\n')
    python.chmod(0o755)
    command = ["bash", str(ROOT / "benchmarks/gpu.sh"), *words]
    environ = os.environ | {
        "PYTHON": str(python),
        "LIFT": "",
        "FLA": "",
        "VERIFIED": "",
        "TRITONS": "a:b",
        "PTXAS": "c",
    }
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    calls = tmp_path / "calls"
    return process.returncode, calls.read_text().splitlines() if calls.exists() else [], process.stdout


@pytest.mark.parametrize("verb", CALLS)
def test_every_verb_runs_its_scripts(verb: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, calls, output = gpu(tmp_path, verb, str(out))
    assert status == 0
    assert calls == [" ".join(call.format(root=ROOT, out=out).split()) for call in CALLS[verb]]
    assert output.splitlines() == [f"ran {line}" for line in calls]
    texts = {f"{name}.txt" for name in TEXTS.get(verb, [verb])}
    assert {path.name for path in out.iterdir()} == texts | ({"verdicts.json"} if verb == "verify" else set())
    assert all((out / text).read_text().startswith("ran ") for text in texts)


def test_all_packages_are_found_without_an_installation(tmp_path: Path) -> None:
    code = "from importlib.util import find_spec; print(*(find_spec(n).origin for n in ('sleeptrain', 'sleep_kernels', 'sleep_data', 'sleep_launch')))"
    behaviour = f'exec {sys.executable} -S -c "{code}"'  # -S: what is installed is not seen
    status, _, output = gpu(tmp_path, "training", str(tmp_path / "out"), behaviour=behaviour)
    folders = ("sleeptrain", "kernels/sleep_kernels", "data_pipelines/sleep_data", "launch/sleep_launch")
    assert status == 0 and output.split()[-4:] == [str(ROOT / folder / "__init__.py") for folder in folders]


def test_a_failed_script_does_not_stop_the_next(tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, calls, _ = gpu(tmp_path, "verify", str(out), behaviour='case "$*" in *self_test*) exit 3 ;; esac')
    assert status == 3 and len(calls) == 2
    assert (out / "verdicts.json").read_bytes() == TABLE.read_bytes()


def test_a_time_limit_still_copies_the_table(tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, calls, _ = gpu(tmp_path, "verify", str(out), behaviour="kill -TERM $PPID")
    assert status in (-15, 143) and len(calls) == 1
    assert (out / "verdicts.json").read_bytes() == TABLE.read_bytes()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def test_every_triton_meets_every_assembler(
    script: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each pair in an environment of its own; a check that hangs or fails leaves the others."""
    assemblers, out = script("assemblers"), tmp_path / "out.json"
    show = "import os; print(os.environ['PYTHONPATH'].split(':')[0], os.environ['TRITON_PTXAS_PATH'], os.environ['TRITON_CACHE_DIR'])"
    hang = "import os, threading; os.environ['TRITON_PTXAS_PATH'] == 'newer' and threading.Event().wait(); print('ok: bfloat16-128')"
    checks = {"versions": ["-c", show], "inductor": ["-c", "raise SystemExit(3)"], "self_test": ["-c", hang]}
    monkeypatch.setattr(assemblers, "CHECKS", checks)
    run = assemblers.run

    def limited(words: list[str], variables: dict[str, str], limit: float) -> Any:
        """Those that hang get no time; the others get all that a busy machine needs."""
        return run(words, variables, 0.1 if words[-1] == hang and variables["TRITON_PTXAS_PATH"] == "newer" else limit)

    monkeypatch.setattr(assemblers, "run", limited)
    monkeypatch.setenv("PYTHONPATH", "before")
    monkeypatch.setenv("TRITON_PTXAS_PATH", "of the caller")
    monkeypatch.setattr("sys.argv", ["assemblers", "--json", str(out), "--triton", "other", "--ptxas", "newer"])
    assert assemblers.main() == 0
    rows = {(row["triton"], row["ptxas"]): row for row in json.loads(out.read_text())["pairs"]}
    assert len(rows) == 4
    for (triton, ptxas), row in rows.items():
        first, assembler, _ = row["versions"]["output"][0].split(" ", 2)
        assert first == ("before" if triton == "installed" else "other")
        own = "other/triton/" if triton == "other" else "/site-packages/triton/"
        assert own in assembler if ptxas == "its own" else assembler == "newer"
        assert row["inductor"]["status"] == 3 and row["self_test"]["ok"] is (ptxas == "its own")
    assert len({row["versions"]["output"][0].split()[-1] for row in rows.values()}) == 4
    assert capsys.readouterr().out.count("ok: bfloat16-128") == 2


TRAINS = """
import json, pathlib, sys, threading
where = pathlib.Path(next(w for w in sys.argv if w.startswith("run_dir=")).removeprefix("run_dir="))
(where / "profile").mkdir(parents=True)
rows = [{"seconds": n, "tokens_per_second": 1 / n, "mfu": None, "memory_bytes": 5, "loss": 2, "grad_norm": 1} for n in (9, 8, 3, 1, 2, 7)]
(where / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows[: int(sys.argv[1])]))
if sys.argv[1] == "6":
    (where / "profile" / "step-6.rank-0.txt").write_text("table")
if sys.argv[1] != "2":
    threading.Event().wait()
"""


@pytest.mark.parametrize("rows", [6, 4, 2])
def test_a_training_is_ended_after_its_profile(
    rows: int, script: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that hangs is ended at the limit, one that ends by itself has failed."""
    training, metrics = script("training"), tmp_path / "run/metrics.jsonl"

    def monotonic() -> float:
        """The limit is reached once four rows are written, however long that takes."""
        return 100.0 * (len(training.rows_of(metrics)) == 4)

    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=monotonic, sleep=time.sleep))
    monkeypatch.setattr(training, "PROGRAM", [sys.executable, "-c", TRAINS, str(rows)])
    found = training.mode([], tmp_path / "run", tmp_path / "log", 60.0)
    assert found["steps"] == rows and ("failed" in found) == (rows < 5)
    assert found.get("seconds") == {6: 2, 4: 2, 2: None}[rows]


@pytest.mark.parametrize("words", [(), ("all",), ("verify",)])
def test_wrong_arguments_are_refused(words: tuple[str, ...], tmp_path: Path) -> None:
    status, calls, output = gpu(tmp_path, *words)
    assert status != 0 and not calls
    assert words == ("verify",) or all(f"benchmarks/gpu.sh {verb} OUT" in output for verb in CALLS)
