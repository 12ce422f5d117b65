"""What is run on a GPU, with an interpreter that only writes down what it is asked to run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "kernels/sleep_kernels/verified.json"
SCRIPTS = {"verify": ["self_test --write", "cuda_graphs"], "measure": ["kernels"], "passes": ["passes"]}


def gpu(tmp_path: Path, *words: str, behaviour: str = "") -> tuple[int, list[str], str]:
    """Status, what the interpreter was asked to run, and what was said."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/bash\necho "$*" >> {tmp_path}/asked\necho said "$*"\n{behaviour}\n')
    python.chmod(0o755)
    command = ["bash", str(ROOT / "benchmarks/gpu.sh"), *words]
    environ = os.environ | {"PYTHON": str(python), "LIFT": "", "FLA": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    asked = tmp_path / "asked"
    return done.returncode, asked.read_text().splitlines() if asked.exists() else [], done.stdout


@pytest.mark.parametrize("verb", SCRIPTS)
def test_every_verb_runs_its_scripts(verb: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, asked, said = gpu(tmp_path, verb, str(out))
    benchmarks = {
        name: f"{ROOT}/benchmarks/{name}.py --json {out}/{name}.json" for name in ("cuda_graphs", "kernels", "passes")
    }
    assert status == 0
    assert asked == [benchmarks.get(name, f"-m sleep_kernels.{name}") for name in SCRIPTS[verb]]
    assert said.splitlines() == [f"said {line}" for line in asked]
    texts = {f"{name.split()[0]}.txt" for name in SCRIPTS[verb]}
    assert {path.name for path in out.iterdir()} == texts | ({"verified.json"} if verb == "verify" else set())
    assert all((out / text).read_text().startswith("said ") for text in texts)


def test_what_fails_leaves_the_rest(tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, asked, _ = gpu(tmp_path, "verify", str(out), behaviour='case "$*" in *self_test*) exit 3 ;; esac')
    assert status == 3 and len(asked) == 2
    assert (out / "verified.json").read_bytes() == TABLE.read_bytes()


def test_a_time_limit_leaves_the_table(tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, asked, _ = gpu(tmp_path, "verify", str(out), behaviour="kill -TERM $PPID")
    assert status in (-15, 143) and len(asked) == 1
    assert (out / "verified.json").read_bytes() == TABLE.read_bytes()


@pytest.mark.parametrize("words", [(), ("all",), ("verify",)])
def test_other_words_are_refused(words: tuple[str, ...], tmp_path: Path) -> None:
    status, asked, said = gpu(tmp_path, *words)
    assert status != 0 and not asked
    assert words == ("verify",) or all(f"benchmarks/gpu.sh {verb} OUT" in said for verb in SCRIPTS)
