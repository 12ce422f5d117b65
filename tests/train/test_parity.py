"""The parity grid stays within its bound, and the committed table has its rows and columns."""

from pathlib import Path

import pytest

from tests.train import parity

PAGE = Path(__file__).parents[2] / "docs" / "parity.md"
CELLS = [
    (program, layout)
    for layouts in parity.LAYOUTS.values()
    for layout in layouts
    for program in parity.PROGRAMS
    if layout != parity.AUTOGRAD and parity.is_supported(layout, program)
]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return parity.grid(tmp_path_factory.mktemp("parity"))


@pytest.mark.slow
@pytest.mark.parametrize("program, layout", CELLS)
def test_every_layout_matches_plain_autograd(found, program, layout):
    result, reference = found[program, layout], found[program, parity.AUTOGRAD]
    assert result.targets == reference.targets
    assert parity.max_relative_difference(result.losses, reference.losses) < parity.BOUND
    assert parity.max_relative_difference(result.norms, reference.norms) < parity.BOUND
    difference, name = parity.worst_tensor(result.gradients, reference.gradients)
    assert difference < parity.BOUND, name
    assert min(reference.norms) > 0.3, "some gradient was not clipped"
    assert len(set(reference.losses)) == 12, "the loss did not change in every step"
    if layout.startswith("one process, recompute"):
        assert parity.same_bits(result, found[program, "one process, recompute none"])


def test_the_page_has_the_rows_and_columns_of_the_grid():
    grid, _ = PAGE.read_text().split("## bfloat16")
    rows = [line.split(" | ") for line in grid.splitlines() if line.startswith("| ")]
    assert [cell.strip("| ") for cell in rows[0][1:]] == list(parity.PROGRAMS)
    layouts = [layout for by_name in parity.LAYOUTS.values() for layout in by_name if layout != parity.AUTOGRAD]
    assert [row[0].strip("| ") for row in rows[1:]] == layouts
