"""Training with ZeRO 3 matches one process on the checkpointed executor, step by step."""

from pathlib import Path

import pytest
import torch

from tests.distributed import run
from tests.engine.tiny import same, snapshot
from tests.train.compare import EPS, assert_clipped, assert_same_training
from tests.train.jobs import recipe_file, rule110_data, text_data, trained

STEPS = [
    "train.steps=12", "train.batch=8", "checkpoint.every=0", "optim.clip=0.3", EPS, "sleep.passes=3", "sleep.window=16",
    "sleep.loop.trigger=every",
]  # fmt: skip
ALL, RANGE = ["model.layers=AG"], ["model.layers=AGGA", "sleep.loop.layers=[1, 3]"]
PROGRAMS = {
    "tied": [*ALL, "model.tie=true"],
    "untied": [*ALL, "model.tie=false"],
    "tied, range": [*RANGE, "model.tie=true"],
    "untied, range": [*RANGE, "model.tie=false"],
    "sliding": [*ALL, "sleep.evict.mode=sliding"],
    "normed, last two passes": [*ALL, "sleep.loop.feedback=normed", "sleep.gradient.passes=2"],
    "ramp": [*ALL, "sleep.passes={start: 1, stop: 3, steps: 6}"],
    "gated, one pass or two": [*ALL, "sleep.loop.feedback=gated", "sleep.passes={low: 1, high: 2}"],
    "biases": [*ALL, "model.attention.bias=true"],
    "large vocabulary": [*ALL, "model.tie=false", "model.vocab=140000"],
    "large vocabulary, tied": [*ALL, "model.tie=true", "model.vocab=140000"],
    "context": [
        *RANGE,
        "sleep.loop.trigger=context",
        "sleep.loop.feedback=embeddings",
        "data=rule110",
        "sleep.window=9",
    ],
}
ZERO = ["mesh.zero=3"]
NO_REUSE = [
    "deepspeed.zero_optimization.stage3_max_reuse_distance=0",
    "deepspeed.zero_optimization.stage3_max_live_parameters=1",
    "deepspeed.zero_optimization.stage3_param_persistence_threshold=0",
]
# Combinations that the parity grid of test_parity.py does not have.
GRID = {
    ("tied", "pass"): [*ZERO, "train.recompute=pass"],
    ("untied", "none"): [*ZERO, "train.recompute=none"],
    ("tied, range", "none"): [*ZERO, "train.recompute=none"],
    ("untied, range", "selective"): [*ZERO, "train.recompute=selective"],
    ("untied, range", "block"): [*ZERO, "train.recompute=block"],
    ("sliding", "pass"): [*ZERO, "train.recompute=pass"],
    ("normed, last two passes", "window"): [*ZERO, "train.recompute=window"],
    ("ramp", "pass"): [*ZERO, "train.recompute=pass"],
    ("large vocabulary", "none"): [*ZERO, "train.recompute=none"],
    ("large vocabulary, tied", "no reuse"): [*ZERO, "train.recompute=pass", *NO_REUSE],
    ("context", "window"): [*ZERO, "train.recompute=window"],
    ("tied", "micro-batches"): [*ZERO, "train.recompute=pass", "train.micro=1", "mesh.group=2"],
    ("tied, range", "no reuse"): [*ZERO, "train.recompute=window", *NO_REUSE],
}  # fmt: skip
SAMPLE = list(GRID)[::3]
"""What CI trains, for a few steps; `make drills` trains the rest for all of them."""


def training(folder: str, program: str, name: str, overrides: list[str], spoil=None):
    where, chosen = Path(folder), PROGRAMS[program]
    data = where / ("rule110" if "data=rule110" in chosen else "text")
    run_name = f"{program} {name}".replace(", ", "-").replace(" ", "-")
    return trained(
        where, run_name, data, [*STEPS, *(o for o in chosen if not o.startswith("data=")), *overrides], spoil=spoil
    )


def trainings(folder: str, wanted: dict[tuple[str, str], list[str]]):
    """Train all combinations in sequence on the current processes."""
    return {(program, name): training(folder, program, name, more) for (program, name), more in wanted.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("zero3")
    text_data(made)
    rule110_data(made)
    recipe_file(made)
    return str(made)


def equal(found, expected):
    """Metrics and weights are equal. The ranks have very different numbers of targets, and every step is clipped."""
    assert_same_training(found, expected)
    assert_clipped(found[0], 0.3)


@pytest.mark.parametrize(
    ("program", "recompute"), [("tied", "window"), ("gated, one pass or two", "pass"), ("biases", "selective")]
)
def test_two_processes_match_one(folder, program, recompute):
    few = ["train.steps=4"]
    expected = run(training, 1, folder, program, "alone, few", few)[0]
    equal(
        run(training, 2, folder, program, "few", [*ZERO, *few, f"train.recompute={recompute}"], timeout=300)[0],
        expected,
    )


@pytest.mark.parametrize(
    "sampled", [pytest.param(True, marks=pytest.mark.slow), pytest.param(False, marks=pytest.mark.exhaustive)]
)
def test_programs_and_recompute_policies_match_one_process(folder, sampled):
    # DeepSpeed traces the order of uses in the first two steps and follows the trace from the third on.
    steps = ["train.steps=3"] if sampled else []
    cases = {case: [*more, *steps] for case, more in GRID.items() if (case in SAMPLE) is sampled}
    alone = run(trainings, 1, folder, {(name, "alone"): steps for name, _ in cases}, timeout=600)[0]
    for (program, name), found in run(trainings, 2, folder, cases, timeout=1200)[0].items():
        try:
            equal(found, alone[program, "alone"])
        except AssertionError as error:
            raise AssertionError(f"{program}, {name}") from error


def stopped_and_resumed(folder: str, recompute: str, precision: str):
    """Four steps in two halves, and in one run."""
    more = [
        *ZERO,
        "train.steps=4",
        f"train.recompute={recompute}",
        f"train.precision={precision}",
        "optim.schedule.name=constant",
    ]
    training(folder, "tied", f"{precision} halves", [*more, "train.steps=2"])
    return training(folder, "tied", f"{precision} halves", more), training(folder, "tied", f"{precision} whole", more)


@pytest.mark.slow
@pytest.mark.parametrize(("recompute", "precision"), [("window", "fp32"), ("none", "bf16")])
def test_resume_continues_exactly(folder, recompute, precision):
    halves, whole = run(stopped_and_resumed, 2, folder, recompute, precision, timeout=300)[0]
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in halves[0]] == [row[key] for row in whole[0]]
    assert len(whole[1]) > 20 and all(torch.equal(weight, whole[1][name]) for name, weight in halves[1].items())
    if precision == "bf16":
        alone = run(training, 1, folder, "tied", "constant", ["train.steps=4", "optim.schedule.name=constant"])[0]
        assert [row["loss"] for row in whole[0]] == pytest.approx([row["loss"] for row in alone[0]], rel=0.03)


def spoil(setup):
    """Set a gradient on the last rank to NaN in the second step and assert that this step changes no state on any rank."""
    engine, done = setup.engine, {"steps": 0}
    weight = next(p for n, p in engine.module.named_parameters() if n.endswith("mlp.up.weight"))
    last, step = setup.process.rank == setup.process.world - 1, engine.step

    def watched(*args, **kwargs):
        held = snapshot(engine)
        report = step(*args, **kwargs)
        done["steps"] += 1
        # The snapshot includes the optimizer's moments, which its first step creates.
        unchanged = same(snapshot(engine), held)
        assert unchanged is report.skipped is (done["steps"] == 2)
        return report

    weight.register_hook(lambda g: g * float("nan") if last and done["steps"] == 1 else g)
    engine.step = watched


def spoiled(folder: str):
    return training(folder, "tied", "spoiled", [*ZERO, "train.recompute=pass", "train.steps=4"], spoil)


@pytest.mark.slow
def test_a_nan_on_one_rank_skips_the_step_on_all_ranks(folder):
    rows, weights = run(spoiled, 2, folder, timeout=300)[0]
    assert [row["skipped"] for row in rows] == [False, True, False, False]
    assert all(torch.isfinite(w).all() for w in weights.values())


def count_gathers(folder: str, overrides: list[str]):
    """Number of parameter all-gathers in every step's forward and backward, without those of the optimizer step."""
    counts, gathered = [], [0]

    def count(setup):
        import deepspeed.comm.comm

        backend, step = deepspeed.comm.comm.cdb, setup.engine.step

        def counted(gather):
            def counting_gather(*args, **options):
                gathered[0] += 1
                return gather(*args, **options)

            return counting_gather

        for name in ("all_gather", "all_gather_into_tensor", "all_gather_coalesced"):
            setattr(backend, name, counted(getattr(backend, name)))

        def stepped(*args):
            counts.append(gathered[0])
            report = step(*args)
            gathered[0] = 0
            return report

        setup.engine.step = stepped

    name = "-".join(o.split("=")[-1] for o in overrides)
    training(folder, "tied", name, [*ZERO, *overrides], count)
    return counts


def gathers_by_case(folder: str):
    more = ["train.steps=4", "train.batch=2", "train.recompute=pass"]
    return {
        "two": count_gathers(folder, ["sleep.passes=2", *more]),
        "five": count_gathers(folder, ["sleep.passes=5", *more]),
        "no reuse": count_gathers(folder, ["sleep.passes=2", *NO_REUSE, *more]),
    }


@pytest.mark.slow
def test_reused_parameters_stay_gathered_between_passes(folder):
    """DeepSpeed traces the order of uses in the first two steps."""
    for counts in run(gathers_by_case, 2, folder, timeout=300):
        assert counts["five"][0] > counts["two"][0] > 100
        assert counts["five"][2:] == counts["two"][2:]
        assert 0 < max(counts["two"][2:]) < 5
        assert min(counts["no reuse"]) > 100
