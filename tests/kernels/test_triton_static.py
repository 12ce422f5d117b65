"""Static compilation of the Triton kernels for sm_90: no register spills, tensor cores used, shared memory fits."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sleep_kernels import verified

SCRIPT = Path(__file__).with_name("static_compile.py")
SHARED = 227 * 1024  # shared memory of a thread block on sm_90, in bytes
# Allowed bytes of spill stores. bfloat16 is for training: with two registers spilled, two programs of four warps of `chunk_fwd` and
# `chunk_bwd_dh` fit on a multiprocessor. A float32 product is three tf32 products, whose operands take twice the registers; float32 is
# for checks, not for speed.
SPILLS = {"bfloat16": 8, "float32": 1400}
# Under Triton 3.6.0, `solve_tril` spills a few registers outside loops.
SPILLS_360 = {"bfloat16": 16, "float32": 1400}
TRITON_360 = Path(os.environ.get("SLEEP_KERNELS_TRITON_360", Path(__file__).parents[2] / ".venv-triton-360"))


def compile_all(*options: str) -> dict[str, Any]:
    process = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(process.stdout)


def check(report: dict[str, Any], spills: dict[str, int]) -> None:
    for name, found in report["kernels"].items():
        allowed = spills[name.split("-")[0]]
        assert found["spill_stores"] <= allowed, f"{name} spills: {found}"
        assert found["shared"] <= SHARED, f"{name} does not fit: {found}"
        if name.split("-")[-1].startswith(("norm", "delta_inputs", "partial_sums")):
            continue  # no matrix products
        # `solve_tril` multiplies 16 x 16 blocks, which are too small for wgmma.
        assert found["mma" if name.endswith("solve_tril") else "wgmma"] > 0, (
            f"{name} leaves the tensor cores idle: {found}"
        )


@pytest.mark.parametrize("kernel", ["chunk_fwd", "chunk_bwd_dqk_grouped"])  # all others are marked slow
def test_most_common_shape(kernel: str) -> None:
    report = compile_all("--only", f"bfloat16-128-{kernel}")
    assert len(report["kernels"]) == 1
    check(report, SPILLS)


# Models are trained in bfloat16, which CI compiles; float32 takes twice the time.
every_dtype = pytest.mark.parametrize(
    "dtype", [pytest.param("bfloat16", marks=pytest.mark.slow), pytest.param("float32", marks=pytest.mark.exhaustive)]
)


@every_dtype
def test_every_entry(dtype: str) -> None:
    report = compile_all("--only", dtype)
    entries = [e for e in verified.table() if e["triton"] == report["triton"] and e["dtype"] == dtype]
    names = {name.split("-")[-1] for name in report["kernels"]}
    assert names == {
        *verified.KERNELS,
        "norm_backward",
        "delta_inputs_backward",
        "delta_inputs_packed",
        "delta_inputs_packed_backward",
        "partial_sums",
    }
    assert len(report["kernels"]) == len(names) * len(entries) > 0
    check(report, SPILLS)


@pytest.mark.parametrize(
    "only",
    [pytest.param("bfloat16-128", marks=pytest.mark.slow)]
    + [pytest.param(only, marks=pytest.mark.exhaustive) for only in ("bfloat16", "float32")],
)
def test_entries_under_triton_360(only: str) -> None:
    """CI compiles the head dimension of the shipped recipes."""
    if not (TRITON_360 / "triton").is_dir():
        pytest.skip(f"NOT CHECKED under Triton 3.6.0: {TRITON_360} is missing; `make triton-360` makes it (0.5 GB)")
    report = compile_all("--only", only, "--triton", str(TRITON_360))
    assert report["triton"] == "3.6.0" and report["kernels"]
    check(report, SPILLS_360)


@pytest.mark.slow
def test_two_programs_of_the_recurrences_share_a_multiprocessor() -> None:
    """Shared memory of 228 KB for both, of which each reserves 1 KB; 255 registers of 128 threads take half of the registers."""
    for kernel in ("chunk_fwd", "chunk_recompute", "chunk_bwd_dh"):
        for name, found in compile_all("--only", f"bfloat16-128-{kernel}")["kernels"].items():
            assert 2 * (found["shared"] + 1024) <= 228 * 1024, f"{name}: {found}"


def test_only_loaded_tiles_are_transposed() -> None:
    """Triton 3.4 to 3.7.0 miscompile products with the transpose of a product (see triton_common.py)."""
    for file in Path(verified.__file__).parent.glob("triton_*.py"):
        for function in ast.walk(ast.parse(file.read_text())):
            if isinstance(function, ast.FunctionDef):
                assert _transposed(function) <= _loaded(function), f"{file.name}, {function.name}"


def _calls(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == name


def _transposed(function: ast.FunctionDef) -> set[str]:
    return {ast.unparse(node.args[0]) for node in ast.walk(function) if _calls(node, "tl.trans")}  # type: ignore[attr-defined]


def _loaded(function: ast.FunctionDef) -> set[str]:
    """Names that are assigned by loads only."""
    assigned: dict[str, bool] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                loaded = _calls(node.value, "tl.load") or _calls(node.value, "_key_rows")
                name = ast.unparse(target)
                assigned[name] = assigned.get(name, True) and loaded
        elif isinstance(node, ast.AugAssign):
            assigned[ast.unparse(node.target)] = False
    return {name for name, loaded in assigned.items() if loaded}
