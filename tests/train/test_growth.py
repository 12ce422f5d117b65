"""The growth of the gradient of S over windows: its factor, which programs can explode, the check before step one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from sleeptrain.program import Gradient, Loop, Ramp, Sleep, Window, compile
from sleeptrain.train.growth import Growth, can_explode, growth, growth_at_start, residual_scale
from tests.distributed import run
from tests.train.jobs import recipe_file, text_data, trained

DEEP = [
    "train.steps=1", "train.batch=4", "train.micro=2", "model.layers=(GA)x6", "model.attention.kv_heads=2", "model.deltanet.key_heads=2", "model.init_std=0.1", "sleep.window=16", "sleep.passes=3",
    "sleep.loop.trigger=every", "checkpoint.every=0", "data.row=96",
]  # fmt: skip

SCALED = f"model.residual_scale={residual_scale(12, 3)}"


def test_the_factor_is_the_geometric_mean_from_the_last_window_to_the_first() -> None:
    assert growth([27.0, 5.0, 3.0]) == pytest.approx(3.0)
    assert growth([1.0]) is None and growth([]) is None and growth([1.0, 0.0]) is None


def test_growth_is_that_of_the_windows_before_the_state_is_detached() -> None:
    assert growth([8.0, 4.0, 2.0, 0.0, 8000.0, 1.0]) == pytest.approx(2.0)


@pytest.mark.parametrize(("total", "expected"), [(99.0, False), (101.0, True), (math.inf, True), (math.nan, True)])
def test_a_growth_that_overflows_is_an_explosion_too(total: float, expected: bool) -> None:
    assert Growth(2.0, 8, total).explodes is expected


@pytest.mark.parametrize(
    ("sleep", "windows", "expected"),
    [
        (Sleep(passes=2), 8, True),
        (Sleep(passes=1), 8, False),
        (Sleep(passes=Ramp(1, 3, 10)), 8, True),
        (Sleep(passes=2, loop=Loop(feedback="normed")), 8, True),
        (Sleep(passes=2, loop=Loop(feedback="gated")), 8, True),
        (Sleep(passes=2, loop=Loop(feedback="embeddings")), 8, False),
        (Sleep(passes=2), 2, False),
        (Sleep(passes=3, gradient=Gradient(passes=2)), 8, False),
        (Sleep(passes=2, gradient=Gradient(windows=2)), 8, False),
        (Sleep(passes=2, gradient=Gradient(windows=4)), 8, True),
    ],
)
def test_programs_that_can_explode(sleep: Sleep, windows: int, expected: bool) -> None:
    layout = [Window(4 * i, 4 * i + 4, i == windows - 1) for i in range(windows)]
    assert can_explode(sleep, compile(sleep, layout, 4)) is expected


def check(where: str, name: str, *overrides: str) -> tuple[list[dict], object]:
    """Rows of metrics of one step, and the growth that was measured before the first one."""
    folder, found = Path(where), []

    def measure(setup):
        weights = [p.detach().clone() for p in setup.context.model.parameters()]
        found.append(growth_at_start(setup.context, 0))
        for before, p in zip(weights, setup.context.model.parameters(), strict=True):
            assert torch.equal(before, p) and p.grad is None
        assert all(not buffer.any() for buffer in setup.engine.grad_buffers.values())

    rows, _ = trained(folder, name, folder / "text", [*DEEP, *overrides], spoil=measure)
    return rows, found[0]


def check_all(where: str) -> dict[str, object]:
    cases = {
        "deep": [],
        "scaled": [SCALED],
        "clipped": ["sleep.gradient.clip_state=0.001"],
        "bf16": ["train.precision=bf16"],
    }
    return {name: check(where, name, *overrides) for name, overrides in cases.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tmp_path_factory.mktemp("growth")
    text_data(made)
    recipe_file(made)
    return str(made)


@pytest.fixture(scope="module")
def alone(folder: str) -> dict[str, object]:
    return run(check_all, 1, folder, timeout=300)[0]


def test_a_deep_stack_explodes_and_a_scaled_one_does_not(alone: dict) -> None:
    (rows, deep), (_, scaled), (clipped, _) = (alone[name] for name in ("deep", "scaled", "clipped"))
    assert deep.windows == 6 and deep.per_window > 2 and deep.total > 100 > 10 > scaled.total
    assert deep.total == pytest.approx(deep.per_window**4)
    assert len(rows[0]["state_gradient"]) == 5 and rows[0]["state_gradient_growth"] > 2
    assert clipped[0]["grad_norm"] < rows[0]["grad_norm"] / 3
    message = deep.message(12, 3)
    assert (
        "times a window over 6 windows" in message
        and "model.residual_scale=0.04 " in message
        and "docs/depth.md" in message
    )


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["mesh.pipe=2", "mesh.tensor=2"])
def test_two_stages_and_two_shards_measure_the_same(folder: str, alone: dict, mesh: str) -> None:
    """In the scaled stack: one that explodes multiplies the rounding in which layouts and CPUs differ as well."""
    [row], found = run(check, 2, folder, mesh, mesh, SCALED, timeout=300)[0]
    [expected_row], expected = alone["scaled"]
    assert found.per_window == pytest.approx(expected.per_window, rel=1e-4)
    for name in ("loss", "state_gradient"):
        assert row[name] == pytest.approx(expected_row[name], rel=1e-4)


def train_aloud(where: str) -> None:
    trained(Path(where), "aloud", Path(where) / "text", DEEP, quiet=False)


def test_training_warns_before_the_first_step(folder: str, capfd: pytest.CaptureFixture[str]) -> None:
    run(train_aloud, 1, folder, timeout=300, fresh=True)
    lines = capfd.readouterr().err.splitlines()
    (warning,) = (
        number for number, line in enumerate(lines) if line.startswith("warning: the gradient of the fast weights")
    )
    assert any("step 1/1" in line for line in lines[warning + 1 :])
