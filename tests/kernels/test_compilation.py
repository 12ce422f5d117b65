"""SIGTERM to all processes of a job while the assembler of a kernel runs: the kernel is compiled, and then the signal is handled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sleep_kernels.compilation import kernel, signals_blocked


@kernel(do_not_specialize=["n"])
def double(x, n, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(x + at, 2 * tl.load(x + at, mask=at < n), mask=at < n)


received = []
signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
if sys.argv[1] == "ready":
    # What a launch calls; without a GPU it is not reached.
    assert double._do_compile.__wrapped__.__self__ is double
    sys.exit()
source = ASTSource(double, {"x": "*fp32", "n": "i32", "SIZE": "constexpr"}, constexprs={"SIZE": 64})
with signals_blocked() if sys.argv[1] == "blocked" else nullcontext():
    triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert not received, "the signal was handled in the block"
print("received", received)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The script, whose source Triton reads, beside an assembler that first sends SIGTERM to its process group."""
    from triton.backends.nvidia.compiler import get_ptxas

    path = get_ptxas(90).path
    (tmp_path / "ptxas").write_text(
        f'#!/bin/sh\ncase "$*" in *--version*) ;; *) kill -TERM 0 ;; esac\nexec {path} "$@"\n'
    )
    (tmp_path / "ptxas").chmod(0o755)
    (tmp_path / "compile.py").write_text(SCRIPT)
    return tmp_path / "compile.py"


def compiled(script: Path, how: str) -> subprocess.CompletedProcess[str]:
    cache = {"TRITON_PTXAS_PATH": str(script.with_name("ptxas")), "TRITON_CACHE_DIR": str(script.with_name("cache"))}
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | cache
    return subprocess.run(
        [sys.executable, str(script), how], env=environment, start_new_session=True, capture_output=True, text=True, check=False
    )  # fmt: skip


def test_a_signal_waits_for_the_assembler(script: Path) -> None:
    made = compiled(script, "blocked")
    assert made.returncode == 0, made.stderr
    assert made.stdout == "received [15]\n"


def test_without_blocking_the_compilation_ends(script: Path) -> None:
    """The test above shows something."""
    made = compiled(script, "open")
    assert (made.returncode == 1 and "error code -15" in made.stderr) or "-15" in made.stderr, made.stderr


def test_launched_kernels_are_compiled_with_signals_blocked(script: Path) -> None:
    made = compiled(script, "ready")
    assert made.returncode == 0, made.stderr
