"""Counts of kernels: those of gated_rms_norm again, and the results of all of them by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOUND = json.loads((ROOT / "benchmarks/results/kernel_counts.json").read_text())
ROW, CHUNK = 2 * 128, 2 * 64
"""Bytes of a token and head in q, k, v or o, and of its row in a matrix of a chunk, in bf16."""


@pytest.mark.slow
def test_gated_rms_norm_is_counted_again():
    command = [sys.executable, "-m", "benchmarks.kernel_counts", "--only", "gated_rms_norm"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True, timeout=300)
    assert json.loads(done.stdout)["launches"]["gated_rms_norm"] == FOUND["launches"]["gated_rms_norm"]


def test_bytes_and_flops_of_kernels_by_hand():
    rule, state = FOUND["launches"]["gated_delta_rule"], 4 * 128 * 128
    invert, forward = (rule[f"forward, {name}_kernel"] for name in ("solve_tril", "chunk_fwd"))
    assert invert["bytes"] == ROW + 8 + CHUNK + 8  # reads k, g, beta; writes the inverse, the sum of g, beta
    assert forward["bytes"] == 3 * ROW + CHUNK + 8 + ROW and forward["bytes, window"] == 2 * state
    # k S, A, the update of S, q S, P; and the scores in both blocks of d_v.
    assert forward["flops"] == 2 * (128 * 128 + 64 * 128 + 128 * 128 + 128 * 128 + 64 * 128 + 2 * 64 * 128)
    remainder = rule["backward, chunk_bwd_dqk_kernel"]
    # q, k, do, dr, e, S and dS' in; dq, dk, dg, dbeta out.
    assert remainder["bytes"] == 5 * ROW + 2 * ROW * 128 // 64 + 8 + 2 * ROW + 8
    assert remainder["flops"] == 2 * (3 * 128 * 128 + 9 * 64 * 128)
    norm = FOUND["launches"]["gated_rms_norm"]
    assert norm["forward, norm_kernel"]["bytes"] == 3 * ROW
    assert norm["minimum"]["bytes"] == 3 * ROW + 5 * ROW


def test_inputs_and_norm_move_little_more_than_their_operands():
    assert FOUND["delta_inputs and gated_rms_norm: bytes over the minimum"] <= 1.35


def test_training_kernels_spill_two_registers_at_most():
    static = FOUND["static, sm_90"]
    assert len(static) == 13 and all(kernel["spill_stores"] <= 8 for kernel in static.values())
