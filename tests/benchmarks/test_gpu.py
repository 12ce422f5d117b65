"""benchmarks/gpu.sh with a fake interpreter that records its arguments."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "kernels/sleep_kernels/verified.json"
SCRIPTS = {"verify": ["self_test --write", "cuda_graphs"], "measure": ["kernels"], "passes": ["passes"]}


def gpu(tmp_path: Path, *words: str, behaviour: str = "") -> tuple[int, list[str], str]:
    """Exit status, calls of the interpreter, and standard output."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/bash\necho "$*" >> {tmp_path}/calls\necho ran "$*"\n{behaviour}\n')
    python.chmod(0o755)
    command = ["bash", str(ROOT / "benchmarks/gpu.sh"), *words]
    environ = os.environ | {"PYTHON": str(python), "LIFT": "", "FLA": ""}
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    calls = tmp_path / "calls"
    return process.returncode, calls.read_text().splitlines() if calls.exists() else [], process.stdout


@pytest.mark.parametrize("verb", SCRIPTS)
def test_every_verb_runs_its_scripts(verb: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, calls, output = gpu(tmp_path, verb, str(out))
    benchmarks = {
        name: f"{ROOT}/benchmarks/{name}.py --json {out}/{name}.json" for name in ("cuda_graphs", "kernels", "passes")
    }
    assert status == 0
    assert calls == [benchmarks.get(name, f"-m sleep_kernels.{name}") for name in SCRIPTS[verb]]
    assert output.splitlines() == [f"ran {line}" for line in calls]
    texts = {f"{name.split()[0]}.txt" for name in SCRIPTS[verb]}
    assert {path.name for path in out.iterdir()} == texts | ({"verified.json"} if verb == "verify" else set())
    assert all((out / text).read_text().startswith("ran ") for text in texts)


def test_a_failed_script_does_not_stop_the_next(tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, calls, _ = gpu(tmp_path, "verify", str(out), behaviour='case "$*" in *self_test*) exit 3 ;; esac')
    assert status == 3 and len(calls) == 2
    assert (out / "verified.json").read_bytes() == TABLE.read_bytes()


def test_a_time_limit_still_copies_the_table(tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, calls, _ = gpu(tmp_path, "verify", str(out), behaviour="kill -TERM $PPID")
    assert status in (-15, 143) and len(calls) == 1
    assert (out / "verified.json").read_bytes() == TABLE.read_bytes()


@pytest.mark.parametrize("words", [(), ("all",), ("verify",)])
def test_wrong_arguments_are_refused(words: tuple[str, ...], tmp_path: Path) -> None:
    status, calls, output = gpu(tmp_path, *words)
    assert status != 0 and not calls
    assert words == ("verify",) or all(f"benchmarks/gpu.sh {verb} OUT" in output for verb in SCRIPTS)
