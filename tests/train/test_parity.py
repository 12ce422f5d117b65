"""The parity grid is within its bound, and the committed page has its rows and columns."""

from pathlib import Path

import pytest

from tests.train import parity

PAGE = Path(__file__).parents[2] / "docs" / "parity.md"
CELLS = [
    (program, layout)
    for layouts in parity.LAYOUTS.values()
    for layout in layouts
    for program in parity.PROGRAMS
    if layout != parity.AUTOGRAD and parity.runs(layout, program)
]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return parity.grid(tmp_path_factory.mktemp("parity"))


@pytest.mark.slow
@pytest.mark.parametrize("program, layout", CELLS)
def test_a_layout_equals_plain_autograd(found, program, layout):
    ran, reference = found[program, layout], found[program, parity.AUTOGRAD]
    assert ran.targets == reference.targets
    assert parity.difference(ran.losses, reference.losses) < parity.BOUND
    assert parity.difference(ran.norms, reference.norms) < parity.BOUND
    apart, name = parity.furthest(ran.gradients, reference.gradients)
    assert apart < parity.BOUND, name
    assert min(reference.norms) > 0.3, "no gradient was clipped"
    assert len(set(reference.losses)) == 12, "losses do not change"
    if layout.startswith("executor, recompute"):
        assert parity.same_bits(ran, found[program, "executor, recompute none"])


@pytest.mark.slow
def test_the_reference_is_another_computation(found):
    """It adds the gradients of a weight's uses in another order, which shows in the last bits of some programs."""
    pairs = [(found[p, parity.AUTOGRAD], found[p, "executor, recompute none"]) for p in parity.PROGRAMS]
    assert any(not parity.same_bits(*pair) for pair in pairs)


def test_the_page_has_these_rows_and_columns():
    grid, _ = PAGE.read_text().split("## bf16")
    rows = [line.split(" | ") for line in grid.splitlines() if line.startswith("| ")]
    assert [cell.strip("| ") for cell in rows[0][1:]] == list(parity.PROGRAMS)
    layouts = [layout for spread in parity.LAYOUTS.values() for layout in spread if layout != parity.AUTOGRAD]
    assert [row[0].strip("| ") for row in rows[1:]] == layouts
