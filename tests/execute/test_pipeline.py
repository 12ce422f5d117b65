"""The circular pipeline in real processes against plain autograd over the whole model in one process."""

import pytest
import torch
import torch.distributed as dist

from sleeptrain.program import Evict, Loop, Sleep
from tests.distributed import run
from tests.execute import stages
from tests.model import toy
from tests.model.test_sleep import CASES

POLICIES = ["none", "selective", "block", "pass", "window"]
THREE = toy.windows(4, 3)
QUICK = {
    "context": CASES["context"],
    "every, sliding": (Sleep(window=4, loop=Loop(trigger="every"), evict=Evict("sliding")), THREE, 3),
    "range in the middle, every": (Sleep(window=4, loop=Loop(layers=(1, 3), trigger="every")), THREE, 3),
    "normed": CASES["normed"],
    "gated": CASES["gated"],
    "clipped": CASES["clipped"],
    "last two passes, range, embeddings": CASES["last two passes, range, embeddings"],
}


def every_policy(number):
    return POLICIES


def two_policies(number):
    """No recomputation, and another policy in turn."""
    return ["none", POLICIES[1 + number % 4]]


def model_of(name, case, make=toy.model, **options):
    """The model of a case: its blocks are those of Ouro where passes read normed features, as there."""
    ouro = toy.OURO if name == "normed" and make is toy.model else {}
    return make(gated=case[0].gated, **ouro, **options)


def compare_stage(cuts, cases, groups, tied, policies, dtype=torch.float64, make=toy.model):
    """For every case: how far this process's stage is from the whole model, and whether its policies give the same bits."""
    p2p, comparisons = stages.p2p_channels(), {}
    given = {
        name: (model_of(name, case, make, dtype=dtype, tie=tied(number)), case, groups[number % len(groups)], number % 2 == 1)
        for number, (name, case) in enumerate(cases.items())
    }  # fmt: skip
    for number, (model, *_) in enumerate(given.values()):
        model.z_loss = 0.2 * (number % 2)  # of which the losses themselves have nothing
    whole = unrolled_once(given)
    for number, (name, (model, case, group, padded)) in enumerate(given.items()):
        expected = whole[name]
        by_policy = {p: stages.run_stage(p2p, model, case, cuts, p, group, padded) for p in policies(number)}
        first = by_policy["none"]
        comparisons[name] = {
            "differences": stages.differences(first, expected),
            "same bits": all(
                torch.equal(g, first[1][n]) for results in by_policy.values() for n, g in results[1].items()
            ) and all(torch.equal(a.nll, b.nll) for r in by_policy.values() for a, b in zip(r[0], first[0], strict=True)),
            "smallest gradient norm": min(g.norm().item() for g in expected[1].values()),
        }  # fmt: skip
    return comparisons


def unrolled_once(given):
    """`stages.unrolled` of every case. Each process computes its share and gets the others'."""
    rank, world = dist.get_rank(), dist.get_world_size()
    shares = [None] * world
    dist.all_gather_object(shares, {name: stages.unrolled(*given[name]) for name in list(given)[rank::world]})
    return {name: found for share in shares for name, found in share.items()}


def every_other(number):
    return number % 2 == 0


def assert_equal(by_stage, tolerance=1e-12):
    """Every stage equals the whole model, and all policies give the same bits; returns all (case, gradient) compared."""
    names = set()
    for comparisons in by_stage:
        for name, case in comparisons.items():
            found = case["differences"]
            worst = max(found["gradients"], key=found["gradients"].get)
            assert found["gradients"][worst] < tolerance, (name, worst, found["gradients"][worst])
            assert found["state"] < tolerance and (found["nll"] or 0) < tolerance, name
            assert (found["residual"] or 0) < max(tolerance, 1e-6), name  # residuals are float32
            assert case["same bits"], f"{name}: policies differ"
            names |= {(name, n) for n in found["gradients"]}
    for name in by_stage[0]:
        with_losses = sum(comparisons[name]["differences"]["nll"] is not None for comparisons in by_stage)
        assert with_losses == 1, "exactly one stage has the losses"
    return names


def test_two_stages_compute_the_gradients_of_one_process_under_every_policy():
    by_stage = run(compare_stage, 2, (2,), QUICK, [2, 3], every_other, every_policy)
    compared = assert_equal(by_stage)
    for number, (name, case) in enumerate(QUICK.items()):
        whole = dict(model_of(name, case, tie=every_other(number)).named_parameters())
        assert {n for other, n in compared if other == name} == set(whole)
        assert by_stage[0][name]["smallest gradient norm"] > 1e-6
        tied = "embed.weight" in by_stage[1][name]["differences"]["gradients"]
        assert tied == every_other(number)  # a tied embedding was compared on the last stage, too


@pytest.mark.parametrize(
    "policies",
    [pytest.param(two_policies, marks=pytest.mark.slow), pytest.param(every_policy, marks=pytest.mark.exhaustive)],
)
@pytest.mark.parametrize(
    "cuts, groups, sample",
    [
        pytest.param((2,), [2, 4], slice(0, None, 2), id="two equal stages"),
        pytest.param((1,), [3], slice(1, None, 2), id="two unequal stages"),
        pytest.param((1, 2, 3), [4, 6], slice(None), id="four stages"),
    ],
)
def test_two_and_four_stages_on_every_option_of_the_program(cuts, groups, sample, policies):
    """CI runs every case on four stages and on one of the cuts into two, `make drills` all of them."""
    cases = dict(list(CASES.items())[sample]) if policies is two_policies else CASES
    assert_equal(run(compare_stage, len(cuts) + 1, cuts, cases, groups, every_other, policies, timeout=600))


@pytest.mark.slow
def test_two_stages_with_the_options_of_jet_nemotron():
    """In the second case with padding and documents."""
    cases = {name: CASES[name] for name in ("context", "range, every")}
    assert_equal(
        run(compare_stage, 2, (2,), cases, [2], every_other, two_policies, torch.float64, toy.jet, timeout=300)
    )


@pytest.mark.slow
def test_four_stages_in_float32_differ_by_rounding_only():
    assert_equal(
        run(compare_stage, 4, (1, 2, 3), QUICK, [4, 5], every_other, two_policies, torch.float32, timeout=300), 1e-4
    )
