"""The combinations of settings that the rules allow: `python -m sleeptrain.recipe.support_matrix > docs/support.md` prints them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

from sleeptrain.config import load
from sleeptrain.config.tree import dump, plain
from sleeptrain.program import Draw, Ramp
from sleeptrain.recipe.recipe import Recipe
from sleeptrain.recipe.rule import Rule, reason
from sleeptrain.recipe.rules import RULES
from sleeptrain.recipe.shipped import configs_root
from sleeptrain.train.job import Job

BASE = ("model.layers=AGGA", "train.batch=8", "optim.adam_lr=0.001")
"""Changes to the recipe `rule110-tiny` that make every setting below meaningful."""


@dataclass(frozen=True)
class OptionAxis:
    """A setting, and those of its values that the rules or the implementation treat differently."""

    path: str
    values: tuple[Any, ...]
    """The first is the default of a choice."""
    about: str


AXES = (
    OptionAxis("mesh.data", (1, 2), "processes that divide the rows of a batch"),
    OptionAxis("mesh.pipe", (1, 2), "pipeline stages, which divide the layers"),
    OptionAxis("mesh.tensor", (1, 2), "processes that divide every layer"),
    OptionAxis("mesh.sequence", (False, True), "the tensor processes divide the tokens between layers"),
    OptionAxis("mesh.zero", (1, 2, 3), "ZeRO stage: shards optimizer state, also gradients (2), also parameters (3) over the data axis"),
    OptionAxis("mesh.group", (0, 1, 2), "micro-batches per group of the pipeline; 0 chooses"),
    OptionAxis("train.micro", (None, 1), "rows per micro-batch; null: all rows of the process"),
    OptionAxis("train.recompute", ("none", "selective", "block", "pass", "window"), "activations saved for backward"),
    OptionAxis("train.offload", (False, True), "saved activations are moved to host memory"),
    OptionAxis("train.precision", ("fp32", "bf16"), "dtype of parameters and features"),
    OptionAxis("optim.name", ("adamw", "muon"), "optimizer of the hidden matrices"),
    OptionAxis("optim.trainable", (None, ("layers.G",)), "all weights are trained, or those of some blocks"),
    OptionAxis("sleep.passes", (3, Ramp(1, 3, 1), Draw(1, 3)), "number of passes: fixed, increasing, or random by step"),
    OptionAxis("sleep.loop.trigger", ("context", "every"), "which windows sleep"),
    OptionAxis("sleep.loop.layers", ("all", (1, 4), (1, 3)), "looped blocks of four: all, all but the first, the middle ones"),
    OptionAxis("sleep.loop.feedback", ("raw", "normed", "embeddings", "gated"), "input of passes 2..N"),
    OptionAxis("sleep.evict.mode", ("hard", "sliding"), "the attention cache is cleared, or the newest keys and values are kept"),
    OptionAxis("sleep.evict.conv_carry", (True, False), "the tail of the convolution is carried across passes and windows"),
    OptionAxis("sleep.gradient.passes", ("all", 1), "passes with gradient, counted from the last"),
    OptionAxis("sleep.gradient.windows", ("all", 2), "windows of truncated back-propagation"),
    OptionAxis("sleep.gradient.clip_state", (None, 0.1), "clipping of the gradient of S between windows"),
    OptionAxis("model.residual_scale", (1.0, 0.1), "factor of the output of every branch"),
    OptionAxis("model.deltanet.generator", (None, 8), "fixed taps of the convolution, or taps that each token generates"),
    OptionAxis("model.attention.bias", (False, True), "biases of the projections to q, k and v"),
    OptionAxis("model.tie", (True, False), "embedding and head share a matrix"),
    OptionAxis("model.attention.qk_norm", (True, False), "queries and keys of each head are normed"),
    OptionAxis("model.norm", ("pre", "sandwich"), "norms before the mixer and MLP, or also after"),
)  # fmt: skip

Choice = Mapping[str, Any]
"""Values by the path of their axis."""


@cache
def base(*changes: str) -> Recipe:
    """The recipe that choices change, with further `changes`. The rules are not applied."""
    return load("rule110-tiny", [*BASE, *changes], Recipe, configs_root()).value


def broken(choice: Choice) -> list[Rule[Job]]:
    """The rules that a choice violates."""
    recipe = _replaced(base(), choice)
    return [rule for rule in RULES if rule.broken(recipe)]


def completed(asked: Choice) -> dict[str, Any] | None:
    """A choice with the values `asked` for and a value for every other axis that violates no rule. None if there is none."""
    found, _ = _search(dict(asked))
    return found


def refusals(asked: Choice) -> list[Rule[Job]]:
    """The rules that refuse the values `asked` for with all values of the other axes. Empty if some choice is allowed."""
    found, blamed = _search(dict(asked))
    return [] if found else [rule for rule in RULES if rule.name in blamed]


def words(choice: Choice) -> list[str]:
    """A choice as overrides on the command line."""
    return [f"{path}={dump(plain(value))}" for path, value in choice.items()]


def pairs(choice: Choice) -> Iterator[tuple[tuple[str, Any], tuple[str, Any]]]:
    """All pairs of values of a choice, in the order of the axes."""
    yield from combinations(((axis.path, choice[axis.path]) for axis in AXES if axis.path in choice), 2)


def every_pair() -> Iterator[tuple[tuple[str, Any], tuple[str, Any]]]:
    """All pairs of values of two axes."""
    for one, other in combinations(AXES, 2):
        yield from (((one.path, a), (other.path, b)) for a in one.values for b in other.values)


def _search(asked: dict[str, Any]) -> tuple[dict[str, Any] | None, set[str]]:
    """A choice that violates no rule, if there is one, and the names of the rules that the search met."""
    choice = {axis.path: asked.get(axis.path, axis.values[0]) for axis in AXES}
    rules = broken(choice)
    if not rules:
        return choice, set()
    blamed = {rules[0].name}
    # A choice that satisfies this rule has another value of at least one of its fields.
    for axis in AXES:
        if axis.path in rules[0].fields and axis.path not in asked:
            for value in axis.values[1:]:
                found, more = _search({**asked, axis.path: value})
                if found:
                    return found, blamed
                blamed |= more
    return None, blamed


def _replaced(section: Any, values: Choice) -> Any:
    """A copy of a section with other values at dotted paths."""
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
    """The page docs/support.md."""
    numbers = {rule.name: number for number, rule in enumerate(RULES, 1)}
    return "\n".join([*_head(), *_axes(), *_matrix(numbers), *_refused(numbers), *_later()])


def _head() -> list[str]:
    return [
        "# Supported combinations",
        "",
        "<!-- Printed from the rules by `python -m sleeptrain.recipe.support_matrix > docs/support.md`; a test compares them. -->",
        "",
        "A recipe that violates a rule is refused before the start. The message names the values, their sources and a way out. The rules",
        "are in `sleeptrain/recipe/rules.py`; this page is printed from them. `tests/recipe/test_support_matrix.py` trains a small model",
        "for two steps in one, two or four processes (gloo, CPU), with enough choices of settings that every allowed pair of values below",
        "occurs at least once, and checks every refusal. Those trainings show that a pair runs and that its losses are finite. That",
        "layouts give the same results is shown in [parity](parity.md).",
        "",
    ]


def _axes() -> list[str]:
    rows = [f"| `{a.path}` | {', '.join(f'`{dump(plain(v))}`' for v in a.values)} | {a.about} |" for a in AXES]
    return ["## Settings", "", "| setting | values | |", "|---|---|---|", *rows, ""]


def _matrix(numbers: Mapping[str, int]) -> list[str]:
    """The table of the values that are in a refused pair."""
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
        "A number is the refusal below that excludes a pair of values with all other settings. `+`: the pair is allowed. Values that are",
        "not in this table are allowed with each other and with all values in it.",
        "",
        f"| | {' | '.join(head)} |",
        "|---|" + "---|" * len(head),
        *rows[1:],
        "",
    ]


def _name(path: str, value: Any) -> str:
    """A value with as much of the end of its path as is unambiguous."""
    short = (
        ".".join(path.split(".")[-2:]) if path.endswith((".name", ".passes", ".windows")) else path.rpartition(".")[2]
    )
    return f"`{short}={dump(plain(value))}`"


def _refused(numbers: Mapping[str, int]) -> list[str]:
    lines = [
        "## Refusals",
        "",
        "The examples are changes to `rule110-tiny` with four blocks, `AGGA`, and batches of 8 rows.",
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
        "## Checks at the start of a run",
        "",
        "- The number of processes is `mesh.data` x `mesh.pipe` x `mesh.tensor`; with `mesh.data: 0` any multiple of `mesh.pipe` x `mesh.tensor`.",
        "- `train.batch` is a multiple of `mesh.data` x `train.micro` x the size of a group.",
        "- `sleep.window` is the longest window of the data; with `sleep.evict.mode: sliding` every window but the last has that length.",
        "- With `mesh.sequence` the tokens of every window are a multiple of `mesh.tensor`.",
        "- With more than one pass at least one window sleeps: a window without targets (`sleep.loop.trigger: context`), or one that is",
        "  not the last (`every`).",
        "- `train.compile: auto` and `train.cuda_graphs: auto`, the defaults, are never refused: they are off on a CPU, and on a GPU where a",
        "  rule above refuses them with the rest of the recipe. CUDA graphs are also off there with `mesh.pipe` and",
        "  `mesh.tensor`, and where they do not fit into the memory beside the plan. A line at the start says why.",
        "- `train.cuda_graphs: true` needs a GPU. It is not among the settings above, because no pair with it has been trained yet. On a",
        "  CPU `tests/execute/test_graphed_actions.py` compares captured passes with eager ones, bit for bit.",
        "- `train.compile: true` needs a C++ compiler on a CPU. It is not among the settings above, since every training would compile for a",
        "  minute; `tests/model/test_compile_blocks.py` and `tests/train/test_compile.py` compare compiled blocks with uncompiled ones.",
        "- A run resumes in any layout: other sizes of the axes, another ZeRO stage, other numbers of processes.",
        "",
    ]


if __name__ == "__main__":
    print(page(), end="")
