"""The support matrix: which values of two settings can be combined, derived from the rules.

`python -m sleeptrain.recipe.support_matrix > docs/support.md` prints the page.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

from sleeptrain.config import Rule, load
from sleeptrain.config.rules import reason
from sleeptrain.config.tree import flow, plain
from sleeptrain.program import Draw, Ramp
from sleeptrain.recipe.recipe import Recipe
from sleeptrain.recipe.rules import RULES
from sleeptrain.train.job import Job

BASE = ("model.layers=AGGA", "train.batch=8", "optim.adam_lr=0.001")
"""Changes to the recipe `rule110-tiny` after which every value of every axis can be set."""


@dataclass(frozen=True)
class OptionAxis:
    """A setting and those of its values that differ in the combinations they allow or in the code they run."""

    path: str
    values: tuple[Any, ...]
    """The first value is the default of a choice."""
    about: str


AXES = (
    OptionAxis("mesh.data", (1, 2), "processes over which the rows of a batch are divided"),
    OptionAxis("mesh.pipe", (1, 2), "pipeline stages over which the layers are divided"),
    OptionAxis("mesh.tensor", (1, 2), "processes over which every layer is sharded"),
    OptionAxis("mesh.sequence", (False, True), "sequence parallelism: tokens are divided over the tensor axis between layers"),
    OptionAxis("mesh.zero", (1, 2, 3), "ZeRO stage: 1 partitions optimizer states, 2 gradients too, 3 parameters too"),
    OptionAxis("mesh.group", (0, 1, 2), "micro-batches of one backward; 0 chooses the number"),
    OptionAxis("train.micro", (None, 1), "rows of a micro-batch; null: all rows of the process"),
    OptionAxis("train.recompute", ("none", "block", "pass", "window"), "activation checkpointing: the unit that is recomputed in backward"),
    OptionAxis("train.offload", (False, True), "checkpoints are offloaded to host memory until backward"),
    OptionAxis("train.precision", ("fp32", "bf16"), "dtype of parameters and activations"),
    OptionAxis("optim.name", ("adamw", "muon"), "optimizer of the hidden matrices"),
    OptionAxis("optim.sum_dtype", ("float32", "bfloat16"), "dtype in which gradients are accumulated"),
    OptionAxis("sleep.passes", (3, Ramp(1, 3, 1), Draw(1, 3)), "fixed, a ramp, or drawn at every step"),
    OptionAxis("sleep.loop.trigger", ("context", "every"), "which windows sleep"),
    OptionAxis("sleep.loop.layers", ("all", (1, 4), (1, 3)), "looped range of the four blocks: all, all but the first, the middle two"),
    OptionAxis("sleep.loop.feedback", ("raw", "normed", "embeddings"), "input of passes after the first"),
    OptionAxis("sleep.evict.mode", ("hard", "sliding"), "eviction of the attention cache"),
    OptionAxis("sleep.evict.conv_carry", (True, False), "the convolution state is carried across passes and windows"),
    OptionAxis("sleep.gradient.passes", ("all", 1), "passes that carry gradient"),
    OptionAxis("sleep.gradient.windows", ("all", 2), "windows after which the gradient is detached"),
    OptionAxis("model.tie", (True, False), "embedding and head share one matrix"),
    OptionAxis("model.norm", ("pre", "sandwich"), "placement of the norms in a block"),
)  # fmt: skip

Choice = Mapping[str, Any]
"""Values by the dotted paths of axes."""


@cache
def base(*changes: str) -> Recipe:
    """The recipe to which choices are applied, with `changes`, not checked against the rules."""
    return load("rule110-tiny", [*BASE, *changes], Recipe).value


def broken_rules(choice: Choice) -> list[Rule[Job]]:
    """The rules that a choice breaks, in the order of the table."""
    recipe = _replaced(base(), choice)
    return [rule for rule in RULES if rule.broken(recipe)]


def completed(required: Choice) -> dict[str, Any] | None:
    """`required` completed by a value of every other axis such that no rule is broken; None if that is impossible."""
    choice, _ = _search(dict(required))
    return choice


def refusals(required: Choice) -> list[Rule[Job]]:
    """The rules that exclude `required` for all values of the other axes; empty if some values are allowed."""
    choice, broken = _search(dict(required))
    return [] if choice else [rule for rule in RULES if rule.name in broken]


def words(choice: Choice) -> list[str]:
    """A choice as overrides on the command line."""
    return [f"{path}={flow(plain(value))}" for path, value in choice.items()]


def pairs(choice: Choice) -> Iterator[tuple[tuple[str, Any], tuple[str, Any]]]:
    """All pairs of values of a choice, in the order of the axes."""
    yield from combinations(((axis.path, choice[axis.path]) for axis in AXES if axis.path in choice), 2)


def every_pair() -> Iterator[tuple[tuple[str, Any], tuple[str, Any]]]:
    """All pairs of values of two axes."""
    for first, second in combinations(AXES, 2):
        yield from (((first.path, a), (second.path, b)) for a in first.values for b in second.values)


def _search(required: dict[str, Any]) -> tuple[dict[str, Any] | None, set[str]]:
    """A choice that breaks no rule, if one exists, and the names of the rules that were broken during the search."""
    choice = {axis.path: required.get(axis.path, axis.values[0]) for axis in AXES}
    rules = broken_rules(choice)
    if not rules:
        return choice, set()
    broken = {rules[0].name}
    # A choice that keeps this rule has another value of at least one of its fields.
    for axis in AXES:
        if axis.path in rules[0].fields and axis.path not in required:
            for value in axis.values[1:]:
                completion, more = _search({**required, axis.path: value})
                if completion:
                    return completion, broken
                broken |= more
    return None, broken


def _replaced(section: Any, values: Choice) -> Any:
    """A section with the values at some dotted paths replaced."""
    nested: dict[str, dict[str, Any]] = {}
    changes = {}
    for path, value in values.items():
        name, _, rest = path.partition(".")
        if rest:
            nested.setdefault(name, {})[rest] = value
        else:
            changes[name] = value
    changes |= {name: _replaced(getattr(section, name), below) for name, below in nested.items()}
    return dataclasses.replace(section, **changes)


def page() -> str:
    """The whole of docs/support.md."""
    numbers = {rule.name: number for number, rule in enumerate(RULES, 1)}
    return "\n".join([*_head(), *_axes(), *_matrix(numbers), *_refused(numbers), *_later()])


def _head() -> list[str]:
    return [
        "# Supported combinations of settings",
        "",
        "<!-- Printed from the rules by `python -m sleeptrain.recipe.support_matrix > docs/support.md`; a test compares this page with them. -->",
        "",
        "A recipe that breaks a rule is refused before the run starts. The message names the values, their sources and the way out.",
        "This page is printed from the rules in `sleeptrain/recipe/rules.py`. `tests/recipe/test_support_matrix.py` trains a small",
        "model for two steps in one, two or four processes (gloo, CPU), in enough combinations to cover every pair of values below",
        "that is not refused, and checks every refusal. A covered pair runs and its losses are finite; other tests compare what the",
        "layouts learn ([parity](parity.md)).",
        "",
    ]


def _axes() -> list[str]:
    rows = [f"| `{a.path}` | {', '.join(f'`{flow(plain(v))}`' for v in a.values)} | {a.about} |" for a in AXES]
    return ["## Settings", "", "| setting | values | |", "|---|---|---|", *rows, ""]


def _matrix(numbers: Mapping[str, int]) -> list[str]:
    """The matrix of the values that cannot be combined with every other value."""
    cells = {pair: rules for pair in every_pair() if (rules := refusals(dict(pair)))}
    values = [(a.path, v) for a in AXES for v in a.values if any((a.path, v) in pair for pair in cells)]

    def cell(row: tuple[str, Any], column: tuple[str, Any]) -> str:
        if row[0] == column[0]:
            return ""
        return ", ".join(str(numbers[rule.name]) for rule in cells.get((column, row), [])) or "+"

    rows = []
    for i, value in enumerate(values):
        row = [cell(value, column) for column in values[:i]] + [""] * (len(values) - i - 1)
        rows.append(f"| {_name(*value)} | {' | '.join(row)} |")
    head = [_name(*value) for value in values[:-1]]
    return [
        "## Pairs",
        "",
        "A number refers to the refusal below that excludes a pair for all values of the other settings. `+` marks a supported pair.",
        "Values that are not in this table can be combined with each other and with those in it.",
        "",
        f"| | {' | '.join(head)} |",
        "|---|" + "---|" * len(head),
        *rows[1:],
        "",
    ]


def _name(path: str, value: Any) -> str:
    """A value with the last components of its path that identify the setting."""
    short = (
        ".".join(path.split(".")[-2:]) if path.endswith((".name", ".passes", ".windows")) else path.rpartition(".")[2]
    )
    return f"`{short}={flow(plain(value))}`"


def _refused(numbers: Mapping[str, int]) -> list[str]:
    lines = [
        "## Refusals",
        "",
        "The examples are overrides of `rule110-tiny` with four blocks, `AGGA`, and batches of 8 rows.",
        "",
    ]
    for rule in RULES:
        fields = ", ".join(f"`{path}`" for path in rule.fields)
        lines += [
            f"### {numbers[rule.name]}. {rule.name}",
            "",
            f"{fields}; for example `{' '.join(rule.example)}`",
            "",
            f"- Why: {reason(rule, base(*rule.example))}.",
            f"- Instead: {rule.fix}.",
            "",
        ]
    return lines


def _later() -> list[str]:
    return [
        "## Checks when the run starts",
        "",
        "- The number of processes is `mesh.data` x `mesh.pipe` x `mesh.tensor`; with `mesh.data: 0` any multiple of the other two.",
        "- `train.batch` divides over the data axis, into micro-batches, into groups.",
        "- `sleep.window` is at least the longest window of the data and at most the sample length; with `sleep.evict.mode: sliding`",
        "  every window but the last has exactly `sleep.window` tokens.",
        "- With `mesh.sequence` the number of tokens of every window is a multiple of `mesh.tensor`.",
        "- With more than one pass at least one window sleeps: a window without targets (`sleep.loop.trigger: context`), or any but the",
        "  last (`every`).",
        "- `train.cuda_graphs: true` needs a GPU. It is not among the settings above, because no pair with it was trained yet; on a CPU",
        "  `tests/execute/test_graphed_actions.py` compares graphed and eager passes bit for bit.",
        "- A checkpoint is resumed on the mesh it was saved on; its `layout.json` records the sizes.",
        "",
    ]


if __name__ == "__main__":
    print(page(), end="")
