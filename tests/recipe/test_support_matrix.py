"""The support matrix: every supported pair of values is trained, and every refusal is checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sleeptrain.config.tree import plain, show
from sleeptrain.errors import UserError
from sleeptrain.recipe import load_recipe
from sleeptrain.recipe.rule import reason
from sleeptrain.recipe.rules import RULES
from sleeptrain.recipe.support_matrix import AXES, BASE, base, completed, every_pair, page, pairs, refusals, words
from tests.distributed import run
from tests.train.jobs import recipe_file, rule110_data, trained

ROOT = Path(__file__).parents[2]
MAX_PROCESSES = 4
"""Number of processes of the largest training."""

REFUSED = {
    (("mesh.tensor", 1), ("mesh.sequence", True)): ["sequence-tensor"],
    (("mesh.pipe", 2), ("mesh.zero", 3)): ["zero3-pipe"],
    (("mesh.tensor", 2), ("mesh.zero", 3)): ["zero3-tensor"],
    (("mesh.sequence", True), ("mesh.zero", 3)): ["sequence-tensor", "zero3-tensor"],
    (("mesh.zero", 3), ("train.offload", True)): ["zero3-offload"],
    (("mesh.zero", 3), ("optim.name", "muon")): ["zero3-muon"],
    (("mesh.pipe", 2), ("mesh.group", 1)): ["group-stages"],
    (("mesh.tensor", 2), ("optim.name", "muon")): ["muon-tensor"],
    (("mesh.sequence", True), ("optim.name", "muon")): ["sequence-tensor", "muon-tensor"],
    (("mesh.tensor", 2), ("model.deltanet.generator", 8)): ["tensor-options"],
    (("mesh.tensor", 2), ("model.attention.bias", True)): ["tensor-options"],
    (("mesh.sequence", True), ("model.deltanet.generator", 8)): ["sequence-tensor", "tensor-options"],
    (("mesh.sequence", True), ("model.attention.bias", True)): ["sequence-tensor", "tensor-options"],
    (("train.recompute", "none"), ("train.offload", True)): ["offload-none"],
    (("train.recompute", "selective"), ("train.offload", True)): ["offload-none"],
    (("sleep.loop.layers", (1, 3)), ("sleep.loop.feedback", "normed")): ["normed-coda"],
    (("sleep.loop.layers", (1, 4)), ("sleep.loop.feedback", "gated")): ["gated-prelude"],
    (("sleep.loop.layers", (1, 3)), ("sleep.loop.feedback", "gated")): ["gated-prelude"],
    (("sleep.gradient.passes", 1), ("sleep.gradient.windows", 2)): ["gradient-horizon"],
}
"""The refused pairs, listed by hand, and the rules that refuse them."""


def test_the_page_matches_the_rules() -> None:
    hint = "regenerate it: python -m sleeptrain.recipe.support_matrix > docs/support.md"
    assert (ROOT / "docs" / "support.md").read_text() == page(), hint


def test_the_refused_pairs_match_the_list() -> None:
    found = {pair: [rule.name for rule in rules] for pair in every_pair() if (rules := refusals(dict(pair)))}
    assert found == REFUSED


@pytest.mark.parametrize("pair", REFUSED, ids=lambda pair: "-".join(words(dict(pair))))
def test_a_refused_pair_is_reported_by_its_rule(pair: Any) -> None:
    """With other settings that break no rule."""
    (rule,) = [rule for rule in RULES if rule.name == REFUSED[pair][0]]
    choice = {"train.offload": False, "train.recompute": "pass"} | dict(pair)
    (message,) = errors(*words(choice))
    values = [f"{path} = {show(plain(value))} (command line)" for path, value in pair if path in rule.fields]
    assert values and all(value in message for value in values)
    assert message.endswith(f": {reason(rule, base(*words(choice)))}; {rule.fix}")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_rule_has_an_example_that_breaks_only_this_rule(rule: Any) -> None:
    (message,) = errors(*rule.example)
    suffix = f": {reason(rule, base(*rule.example))}; {rule.fix}"
    assert message.endswith(suffix)
    assert [value.partition(" = ")[0] for value in message.removesuffix(suffix).split(" with ")] == list(rule.fields)


def errors(*changes: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_recipe("rule110-tiny", [*BASE, *changes])
    return caught.value.errors


def feasible(required: dict[str, Any]) -> bool:
    """Whether a supported choice with these values needs at most MAX_PROCESSES processes."""
    choice = completed(required)
    return choice is not None and processes(choice) <= MAX_PROCESSES


def processes(choice: dict[str, Any]) -> int:
    return choice["mesh.data"] * choice["mesh.pipe"] * choice["mesh.tensor"]


def covering() -> list[dict[str, Any]]:
    """Choices that cover every pair of values that is not refused.

    Greedy: each choice starts with an uncovered pair and takes, axis by axis, the value that covers most further pairs.
    """
    missing = dict.fromkeys(pair for pair in every_pair() if pair not in REFUSED)
    choices = []
    while missing:
        choice = dict(next(iter(missing)))
        for axis in AXES:
            if axis.path not in choice:
                options = [{**choice, axis.path: value} for value in axis.values]
                gains = {i: sum(pair in missing for pair in pairs(option)) for i, option in enumerate(options)}
                best = next(i for i in sorted(gains, key=lambda i: (-gains[i], i)) if feasible(options[i]))
                choice = options[best]
        choices.append(choice)
        for pair in pairs(choice):
            missing.pop(pair, None)
    return choices


def test_the_choices_cover_every_pair_and_can_be_loaded() -> None:
    choices = covering()
    covered = {pair for choice in choices for pair in pairs(choice)}
    assert covered == {pair for pair in every_pair() if pair not in REFUSED}
    assert {processes(choice) for choice in choices} == {1, 2, 4}
    for choice in choices:
        load_recipe("rule110-tiny", [*BASE, *words(choice)])


SIZES = [
    "model.layers=AGGA", "model.attention.kv_heads=2", "model.deltanet.key_heads=2", "sleep.window=8", "train.batch=8", "train.steps=2",
    "optim.adam_lr=0.001", "checkpoint.every=0",
]  # fmt: skip


def train_all(folder: str, choices: list[dict[str, Any]]) -> list[Any]:
    """Train two steps of every choice on the current processes: (metrics, whether all weights are finite) of each."""
    results = []
    for n, choice in enumerate(choices):
        try:
            rows, weights = trained(
                Path(folder), f"{processes(choice)}-{n}", Path(folder) / "rule110", [*SIZES, *words(choice)]
            )
        except Exception as error:
            raise AssertionError(f"refused or failed: {' '.join(words(choice))}") from error
        results.append((rows, weights is None or all(bool(w.isfinite().all()) for w in weights.values())))
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tmp_path_factory.mktemp("support")
    rule110_data(made, width=7)  # every window has 8 tokens
    recipe_file(made)
    return str(made)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_pair_trains(folder: str, world: int) -> None:
    # Model-parallel layouts first: DeepSpeed keeps their process groups and also uses them for engines without model parallelism.
    choices = sorted(
        (choice for choice in covering() if processes(choice) == world), key=lambda choice: choice["mesh.data"] < world
    )
    for rank in run(train_all, world, folder, choices, timeout=600):
        for choice, (rows, finite) in zip(choices, rank, strict=True):
            assert [row["step"] for row in rows] == [1, 2], words(choice)
            numbers = torch.tensor([[row["loss"], row["grad_norm"], row["state_norm"]] for row in rows])
            assert numbers.isfinite().all() and (numbers > 0).all() and finite, words(choice)
            assert not any(row["skipped"] for row in rows), words(choice)
