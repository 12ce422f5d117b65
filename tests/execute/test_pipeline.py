"""The circular pipeline in real processes against autograd over the whole model in one; what it keeps, when it waits."""

import pytest
import torch

from sleeptrain.program import Evict, Loop, Sleep
from tests.distributed import run
from tests.execute import stages as cut
from tests.model import toy
from tests.model.test_sleep import CASES

POLICIES = ["none", "block", "pass", "window"]
THREE = toy.windows(4, 3)
QUICK = {
    "context": CASES["context"],
    "every, sliding": (Sleep(window=4, loop=Loop(trigger="every"), evict=Evict("sliding")), THREE, 3),
    "range in the middle, every": (Sleep(window=4, loop=Loop(layers=(1, 3), trigger="every")), THREE, 3),
    "normed": CASES["normed"],
    "last two passes, range, embeddings": CASES["last two passes, range, embeddings"],
}


def compared(cuts, cases, groups, tied, dtype=torch.float64):
    """Every case on this process's stage: distances from one process, and whether policies agree in every bit."""
    ways, found = cut.edges(), {}
    for number, (name, case) in enumerate(cases.items()):
        model, group, padded = toy.model(dtype=dtype, tie=tied(number)), groups[number % len(groups)], number % 2 == 1
        expected = cut.unrolled(model, case, group, padded)
        by_policy = {p: cut.staged(ways, model, case, cuts, p, group, padded) for p in POLICIES}
        first = by_policy["none"]
        found[name] = {
            "apart": cut.distance(first, expected),
            "bits": all(
                torch.equal(g, first[1][n]) for results in by_policy.values() for n, g in results[1].items()
            ) and all(torch.equal(a.nll, b.nll) for r in by_policy.values() for a, b in zip(r[0], first[0], strict=True)),
            "least": min(g.norm().item() for g in expected[1].values()),
        }  # fmt: skip
    return found


def alternately(number):
    return number % 2 == 0


def equal(stages, tolerance=1e-12):
    names = set()
    for found in stages:
        for name, case in found.items():
            apart = case["apart"]
            worst = max(apart["gradients"], key=apart["gradients"].get)
            assert apart["gradients"][worst] < tolerance, (name, worst, apart["gradients"][worst])
            assert apart["state"] < tolerance and (apart["nll"] or 0) < tolerance, name
            assert (apart["residual"] or 0) < max(tolerance, 1e-6), name  # in float32
            assert case["bits"], f"{name}: policies differ"
            names |= {(name, n) for n in apart["gradients"]}
    for name in stages[0]:
        assert sum(found[name]["apart"]["nll"] is not None for found in stages) == 1, "one stage knows the losses"
    return names


def test_two_stages_compute_the_gradients_of_one_process_under_every_policy():
    stages = run(compared, 2, (2,), QUICK, [2, 3], alternately)
    compared_names = equal(stages)
    for number, name in enumerate(QUICK):
        whole = dict(toy.model(tie=alternately(number)).named_parameters())
        assert {n for case, n in compared_names if case == name} == set(whole)
        assert stages[0][name]["least"] > 1e-6
        tied = "embed.weight" in stages[1][name]["apart"]["gradients"]
        assert tied == alternately(number)  # and then it was compared there, too


@pytest.mark.slow
@pytest.mark.parametrize("cuts, groups", [((2,), [2, 4]), ((1,), [3]), ((1, 2, 3), [4, 6])])
def test_two_and_four_stages_on_every_option_of_the_program(cuts, groups):
    equal(run(compared, len(cuts) + 1, cuts, CASES, groups, alternately, timeout=600))


@pytest.mark.slow
def test_in_float32_four_stages_stay_within_rounding():
    equal(run(compared, 4, (1, 2, 3), QUICK, [4, 5], alternately, torch.float32, timeout=300), 1e-4)
