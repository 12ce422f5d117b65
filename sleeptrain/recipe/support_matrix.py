"""Which settings work together, by the rules; `python -m sleeptrain.recipe.support_matrix > docs/support.md` prints the page."""

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
"""What makes the recipe `rule110-tiny` one in which everything has its place."""


@dataclass(frozen=True)
class OptionAxis:
    """A setting, and the values of it that differ in what they go with or in how they are carried out."""

    path: str
    values: tuple[Any, ...]
    """The first is the one that is taken where nothing else is asked for."""
    about: str


AXES = (
    OptionAxis("mesh.data", (1, 2), "processes that share the rows of a batch"),
    OptionAxis("mesh.pipe", (1, 2), "stages that share the layers"),
    OptionAxis("mesh.tensor", (1, 2), "processes that share every layer"),
    OptionAxis("mesh.sequence", (False, True), "the tensor processes share the tokens between the layers"),
    OptionAxis("mesh.zero", (1, 2, 3), "ZeRO stage: what the data axis shares of optimizer, gradients and parameters"),
    OptionAxis("mesh.group", (0, 1, 2), "micro-batches of one backward; 0 chooses"),
    OptionAxis("train.micro", (None, 1), "rows of a micro-batch; null: as many as there are"),
    OptionAxis("train.recompute", ("none", "block", "pass", "window"), "what is kept for backward"),
    OptionAxis("train.offload", (False, True), "it waits in the host's memory"),
    OptionAxis("train.precision", ("fp32", "bf16"), "type of parameters and features"),
    OptionAxis("optim.name", ("adamw", "muon"), "optimizer of the hidden matrices"),
    OptionAxis("optim.sum_dtype", ("float32", "bfloat16"), "type in which a weight's gradients are summed"),
    OptionAxis("sleep.passes", (3, Ramp(1, 3, 1), Draw(1, 3)), "fixed, growing, or drawn at every step"),
    OptionAxis("sleep.loop.trigger", ("context", "every"), "which windows sleep"),
    OptionAxis("sleep.loop.layers", ("all", (1, 4), (1, 3)), "looped blocks of four: all, all but the first, those in the middle"),
    OptionAxis("sleep.loop.feedback", ("raw", "normed", "embeddings"), "what a later pass reads"),
    OptionAxis("sleep.evict.mode", ("hard", "sliding"), "what happens to the attention cache"),
    OptionAxis("sleep.evict.conv_carry", (True, False), "the convolution's tail crosses passes and windows"),
    OptionAxis("sleep.gradient.passes", ("all", 1), "passes that carry gradient"),
    OptionAxis("sleep.gradient.windows", ("all", 2), "windows after which the gradient is cut"),
    OptionAxis("model.tie", (True, False), "embedding and head are one matrix"),
    OptionAxis("model.norm", ("pre", "sandwich"), "where blocks are normed"),
)  # fmt: skip

Choice = Mapping[str, Any]
"""Values by the paths of axes."""


@cache
def base(*changes: str) -> Recipe:
    """The recipe that choices are made in, with some changes, whatever the rules say of it."""
    return load("rule110-tiny", [*BASE, *changes], Recipe).value


def broken(choice: Choice) -> list[Rule[Job]]:
    """The rules that a choice breaks."""
    recipe = _replaced(base(), choice)
    return [rule for rule in RULES if rule.broken(recipe)]


def completed(asked: Choice) -> dict[str, Any] | None:
    """What is asked for with a value for every other axis, so that no rule is broken; None if there is no such choice."""
    found, _ = _search(dict(asked))
    return found


def refusals(asked: Choice) -> list[Rule[Job]]:
    """The rules that stand in the way of a choice, whatever the other axes are; none if there is a way."""
    found, blamed = _search(dict(asked))
    return [] if found else [rule for rule in RULES if rule.name in blamed]


def words(choice: Choice) -> list[str]:
    """A choice as changes on the command line."""
    return [f"{path}={flow(plain(value))}" for path, value in choice.items()]


def pairs(choice: Choice) -> Iterator[tuple[tuple[str, Any], tuple[str, Any]]]:
    """All pairs of values of a choice, in the order of the axes."""
    yield from combinations(((axis.path, choice[axis.path]) for axis in AXES if axis.path in choice), 2)


def every_pair() -> Iterator[tuple[tuple[str, Any], tuple[str, Any]]]:
    """All pairs of values of two axes."""
    for one, other in combinations(AXES, 2):
        yield from (((one.path, a), (other.path, b)) for a in one.values for b in other.values)


def _search(asked: dict[str, Any]) -> tuple[dict[str, Any] | None, set[str]]:
    """A choice that breaks no rule, if there is one, and the names of the rules that were met on the way to it."""
    choice = {axis.path: asked.get(axis.path, axis.values[0]) for axis in AXES}
    rules = broken(choice)
    if not rules:
        return choice, set()
    blamed = {rules[0].name}
    # What keeps this rule has another value of at least one of its fields.
    for axis in AXES:
        if axis.path in rules[0].fields and axis.path not in asked:
            for value in axis.values[1:]:
                found, more = _search({**asked, axis.path: value})
                if found:
                    return found, blamed
                blamed |= more
    return None, blamed


def _replaced(section: Any, values: Choice) -> Any:
    """A section with other values at dotted paths."""
    inner: dict[str, dict[str, Any]] = {}
    changes = {}
    for path, value in values.items():
        name, _, rest = path.partition(".")
        if rest:
            inner.setdefault(name, {})[rest] = value
        else:
            changes[name] = value
    changes |= {name: _replaced(getattr(section, name), below) for name, below in inner.items()}
    return dataclasses.replace(section, **changes)


def page() -> str:
    """The whole of docs/support.md."""
    numbers = {rule.name: number for number, rule in enumerate(RULES, 1)}
    return "\n".join([*_head(), *_axes(), *_matrix(numbers), *_refused(numbers), *_later()])


def _head() -> list[str]:
    return [
        "# What works together",
        "",
        "<!-- Printed from the rules by `python -m sleeptrain.recipe.support_matrix > docs/support.md`; a test holds this page to them. -->",
        "",
        "A recipe that breaks a rule is refused before anything is started, with the values, where they came from, and what to do.",
        "All rules are in `sleeptrain/recipe/rules.py`; this page is printed from them. `tests/recipe/test_support_matrix.py` trains a small model for",
        "two steps in one, two or four real processes (gloo, CPU), in as many settings as it takes for every pair of values below",
        "that is not refused to meet at least once, and asks for every refusal. That a pair meets says that it runs and that its",
        "losses are finite; that layouts learn the same is shown elsewhere in `tests/`.",
        "",
    ]


def _axes() -> list[str]:
    rows = [f"| `{a.path}` | {', '.join(f'`{flow(plain(v))}`' for v in a.values)} | {a.about} |" for a in AXES]
    return ["## Settings", "", "| setting | values | |", "|---|---|---|", *rows, ""]


def _matrix(numbers: Mapping[str, int]) -> list[str]:
    """The values that do not go with everything, against one another."""
    cells = {pair: rules for pair in every_pair() if (rules := refusals(dict(pair)))}
    met = [(a.path, v) for a in AXES for v in a.values if any((a.path, v) in pair for pair in cells)]

    def cell(one: tuple[str, Any], other: tuple[str, Any]) -> str:
        if one[0] == other[0]:
            return ""
        return ", ".join(str(numbers[rule.name]) for rule in cells.get((other, one), [])) or "+"

    rows = []
    for i, one in enumerate(met):
        row = [cell(one, other) for other in met[:i]] + [""] * (len(met) - i - 1)
        rows.append(f"| {_name(*one)} | {' | '.join(row)} |")
    head = [_name(*one) for one in met[:-1]]
    return [
        "## Pairs",
        "",
        "A number is the refusal below that stands in the way of two values, whatever the other settings are. `+` says that they go",
        "together, as do all values that are not in this table, with one another and with these.",
        "",
        f"| | {' | '.join(head)} |",
        "|---|" + "---|" * len(head),
        *rows[1:],
        "",
    ]


def _name(path: str, value: Any) -> str:
    """A value by the last words of its path that say enough."""
    short = (
        ".".join(path.split(".")[-2:]) if path.endswith((".name", ".passes", ".windows")) else path.rpartition(".")[2]
    )
    return f"`{short}={flow(plain(value))}`"


def _refused(numbers: Mapping[str, int]) -> list[str]:
    lines = [
        "## Refusals",
        "",
        "The instances are changes to `rule110-tiny` with four blocks, `AGGA`, and batches of 8 rows.",
        "",
    ]
    for rule in RULES:
        fields = ", ".join(f"`{path}`" for path in rule.fields)
        lines += [
            f"### {numbers[rule.name]}. {rule.name}",
            "",
            f"{fields}; for instance `{' '.join(rule.example)}`",
            "",
            f"- Why: {reason(rule, base(*rule.example))}.",
            f"- Instead: {rule.fix}.",
            "",
        ]
    return lines


def _later() -> list[str]:
    return [
        "## What is known only when the run starts",
        "",
        "- The number of processes is `mesh.data` x `mesh.pipe` x `mesh.tensor`; with `mesh.data: 0` any multiple of the other two.",
        "- `train.batch` divides over the data axis, into micro-batches, into groups.",
        "- `sleep.window` is at least the longest window of the data, and no longer than its samples; with `sleep.evict.mode: sliding`",
        "  every window but the last has exactly so many tokens.",
        "- With `mesh.sequence` every window has a multiple of `mesh.tensor` tokens.",
        "- With more than one pass some window must sleep: one without targets (`sleep.loop.trigger: context`), or one that is not",
        "  the last (`every`).",
        "- `train.cuda_graphs: true` needs a GPU. It is not among the settings above, since no pair with it was trained yet: on a CPU",
        "  `tests/execute/test_graphed_actions.py` holds the recorded passes against the others, bit for bit.",
        "- A checkpoint is continued at the sizes it was saved at; its `layout.json` names them.",
        "",
    ]


if __name__ == "__main__":
    print(page(), end="")
