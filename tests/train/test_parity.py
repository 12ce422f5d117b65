"""The parity grid is within its bound, and the committed page has its rows and columns."""

import itertools
from pathlib import Path

import pytest

from tests.train import parity

PAGE = Path(__file__).parents[2] / "docs" / "parity.md"
CELLS = [
    pytest.param(*cell, marks=pytest.mark.slow if parity.in_sample(*cell) else pytest.mark.exhaustive)
    for cell in parity.cells()
]
"""CI runs a sample of the grid for a few steps, `make drills` the rest for all of them; docs/parity.md has the whole grid."""
FEW = 3
"""Steps of the sample: the loss of step 2 depends on the first update, that of step 3 also on the moments kept from it."""


@pytest.fixture(scope="module")
def found(request, tmp_path_factory):
    """The measurements of the cells that were selected."""
    chosen = [
        item.callspec.params
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    ]
    wanted = [(params["program"], params["layout"]) for params in chosen]
    steps = FEW if all(parity.in_sample(*cell) for cell in wanted) else parity.STEPS
    return parity.grid(tmp_path_factory.mktemp("parity"), wanted, steps)


@pytest.mark.parametrize("program, layout", CELLS)
def test_a_layout_equals_plain_autograd(found, program, layout):
    ran, reference = found[program, layout], found[program, parity.AUTOGRAD]
    assert ran.targets == reference.targets
    assert parity.difference(ran.losses, reference.losses) < parity.BOUND
    assert parity.difference(ran.norms, reference.norms) < parity.BOUND
    apart, name = parity.furthest(ran.gradients, reference.gradients)
    assert apart < parity.BOUND, name
    assert min(reference.norms) > 0.3, "no gradient was clipped"
    assert len(set(reference.losses)) == len(ran.losses) >= FEW, "losses do not change"
    if layout.startswith("executor, recompute"):
        assert parity.same_bits(ran, found[program, parity.PLAIN])


@pytest.mark.slow
def test_the_reference_is_another_computation(found):
    """It adds the gradients of a weight's uses in another order, which shows in the last bits of some programs."""
    pairs = [(found[p, parity.AUTOGRAD], found[p, parity.PLAIN]) for p in parity.PROGRAMS]
    assert any(not parity.same_bits(*pair) for pair in pairs)


def mesh_pairs(layouts):
    """All pairs of options of the mesh that occur together in one of the layouts; a single option pairs with itself."""
    options = {
        layout: [o for o in spread if "mesh" in o] for by in parity.LAYOUTS.values() for layout, spread in by.items()
    }
    return {pair for layout in layouts for pair in itertools.combinations_with_replacement(sorted(options[layout]), 2)}


def test_the_sample_has_every_program_and_every_pair_of_mesh_options():
    sample = {cell for cell in parity.cells() if parity.in_sample(*cell)}
    assert {program for program, _ in sample} == set(parity.PROGRAMS)
    every, sampled = ({layout for _, layout in cells} for cells in (parity.cells(), sample))
    assert every - sampled == parity.COVERED and mesh_pairs(sampled) == mesh_pairs(every)
    several = [layout for _, layout in sample if layout not in parity.LAYOUTS[1]]
    assert all(1 <= several.count(layout) <= 2 for layout in several)


def test_the_page_has_these_rows_and_columns():
    grid, _ = PAGE.read_text().split("## bf16")
    rows = [line.split(" | ") for line in grid.splitlines() if line.startswith("| ")]
    assert [cell.strip("| ") for cell in rows[0][1:]] == list(parity.PROGRAMS)
    layouts = [layout for spread in parity.LAYOUTS.values() for layout in spread if layout != parity.AUTOGRAD]
    assert [row[0].strip("| ") for row in rows[1:]] == layouts
