"""Packed rows through the Triton kernels, in Triton's interpreter, equal their documents run alone through plain torch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sleeptrain.model.config import DeltaNetConfig
from sleeptrain.model.micro_batch import MicroBatch, starts_by_window
from sleeptrain.model.sleep import run
from sleeptrain.program import compile
from tests.model import toy
from tests.model.test_packing import CASES, gradients, layout_of, packed_rows, run_alone


def packed_case(name: str) -> dict[str, float]:
    """By name of a result, its difference from that of plain torch in float64, relative to its largest element."""
    sleep, deltanet = CASES[name], DeltaNetConfig(key_heads=1, value_heads=2, head_dim=16)
    narrow, wide = (toy.model("AG", dtype=dtype, deltanet=deltanet) for dtype in (torch.float32, torch.float64))
    narrow.layers[1].mixer.backend = "triton"
    layout = layout_of(sleep)
    tokens, targets, first = packed_rows(layout)
    program = compile(sleep, layout, 2)
    state, starts = narrow.zero_state(sleep, 2), starts_by_window(first, layout)
    output = run(narrow, MicroBatch(tokens, targets, state, starts=starts), program, sleep)
    found = {"losses": output.nll.detach()} | gradients(narrow, output.nll)
    nll, _ = run_alone(wide, sleep, program, tokens, targets, first)
    wanted = {"losses": nll.detach()} | gradients(wide, nll)
    return {n: ((found[n] - w).abs().max() / w.abs().max().clamp(min=1e-3)).item() for n, w in wanted.items()}


@pytest.mark.slow
def test_packed_rows_in_triton(interpreted: Callable[..., Any]) -> None:
    for name, difference in interpreted(packed_case, "N=3, sliding").items():
        assert difference < 2e-4, f"{name}: {difference}"
