"""Drill: random recipes, each in a random layout, train as on one process."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from sleeptrain.recipe.support_matrix import AXES, words
from tests.distributed import run
from tests.recipe.test_support_matrix import feasible, processes
from tests.train.compare import EPS
from tests.train.jobs import recipe_file, rule110_data, trained

RECIPES = 10
"""Recipes of a seed."""
LAYOUT = ("mesh.", "train.micro", "train.recompute", "train.offload")
"""Settings that change nothing that is learned."""
SIZES = [
    "model.layers=AGGA", "model.attention.kv_heads=2", "model.deltanet.key_heads=2", "model.deltanet.value_heads=2", "sleep.window=8",
    "train.batch=8", "train.steps=3", "optim.schedule.warmup=0", "optim.clip=0.3", EPS, "optim.adam_lr=0.001", "optim.ns_dtype=float32",
    "checkpoint.every=0",
]  # fmt: skip
"""Gradients of all steps are clipped, so that each weight depends on all of them."""
PLAIN = ["train.recompute=pass"]
ROUNDED = [["train.recompute=none", "train.micro=1"], ["train.recompute=pass", "train.micro=2"]]
"""Layouts of one process that round otherwise."""
BOUND = 2e-5
AMPLIFIED = 30
"""Some recipes amplify rounding. A distance above BOUND may be so many times that of the one-process layouts that round otherwise."""

Choice = dict[str, Any]
Distances = dict[str, float]


def drawn(source: random.Random) -> Choice:
    """A choice that no rule refuses, in fp32. Settings are drawn in random order, each from the values that those before it allow."""
    choice: Choice = {"train.precision": "fp32"}
    for axis in source.sample(AXES, len(AXES)):
        if axis.path not in choice:
            choice[axis.path] = source.choice(
                [value for value in axis.values if feasible({**choice, axis.path: value})]
            )
    return choice


def program(choice: Choice) -> list[str]:
    """The settings of a choice that say what is learned."""
    return words({path: value for path, value in choice.items() if not path.startswith(LAYOUT)})


def training(folder: str, name: str, overrides: list[str]) -> Any:
    return trained(Path(folder), name, Path(folder) / "rule110", [*SIZES, *overrides])


def distances(found: Any, expected: Any) -> Distances:
    """Relative distances of the metrics of all steps and of all weights."""
    apart = {
        f"{key}, step {step}": abs(ours[key] - theirs[key]) / abs(theirs[key])
        for key in ("loss", "grad_norm", "state_norm")
        for step, (ours, theirs) in enumerate(zip(found[0], expected[0], strict=True), 1)
    }
    assert found[1].keys() == expected[1].keys()
    # Biases begin at zero, and their distances count against a norm that the others have.
    return apart | {name: float((found[1][name] - w).norm() / (w.norm() + 0.01)) for name, w in expected[1].items()}


def wrong(folder: str, name: str, choice: Choice, found: Any) -> Distances:
    """The distances of a training from that on one process which rounding does not explain."""
    expected = run(training, 1, folder, f"{name}-one", [*PLAIN, *program(choice)])[0]
    apart = {key: far for key, far in distances(found, expected).items() if not far <= BOUND}
    if not apart:
        return {}
    rounding = 0.0
    for n, layout in enumerate(ROUNDED):
        other = run(training, 1, folder, f"{name}-rounded-{n}", [*program(choice), *layout])[0]
        rounding = max(rounding, *distances(other, expected).values())
    return {key: far for key, far in apart.items() if not far <= AMPLIFIED * rounding}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tmp_path_factory.mktemp("layouts")
    rule110_data(made, width=7)  # every window has 8 tokens
    recipe_file(made)
    return str(made)


@pytest.mark.slow
@pytest.mark.drill
def test_random_layouts(folder: str, drill_seed: int) -> None:
    source = random.Random(drill_seed)
    for n in range(RECIPES):
        choice, name = drawn(source), f"{drill_seed}-{n}"
        found = run(training, processes(choice), folder, name, words(choice), timeout=300)[0]
        assert not wrong(folder, name, choice, found), f"recipe {n}: {' '.join(words(choice))}"
