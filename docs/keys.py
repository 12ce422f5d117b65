#!/usr/bin/env python3
"""Writes docs/keys.md, the reference of the keys of recipes and studies, from the classes and their docstrings.

    python docs/keys.py > docs/keys.md

tests/test_keys.py checks that the page is current, that every key has a meaning, and that every number has a unit in UNITS.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, get_args, get_origin

from sleeptrain.config.names import describe, fields_of, is_section, members
from sleeptrain.config.tree import plain
from sleeptrain.recipe.recipe import Recipe
from sleeptrain.study.config import Study

UNITS = {
    "model.width": "features", "model.attention.heads": "heads", "model.attention.kv_heads": "heads",
    "model.attention.head_dim": "features", "model.attention.rotary": "fraction", "model.attention.theta": "base",
    "model.attention.window": "tokens", "model.attention.local": "tokens", "model.deltanet.key_heads": "heads", "model.deltanet.value_heads": "heads",
    "model.deltanet.head_dim": "features", "model.deltanet.conv": "tokens", "model.deltanet.horizon": "tokens",
    "model.deltanet.generator": "features", "model.deltanet.value_dim": "features", "model.deltanet.eps": "square of features",
    "model.mlp.hidden": "features", "model.vocab": "ids", "model.residual_scale": "factor", "model.eps": "square of features",
    "model.init_std": "standard deviation", "sleep.window": "tokens", "sleep.passes": "passes",
    "sleep.passes.start": "passes", "sleep.passes.stop": "passes", "sleep.passes.steps": "steps", "sleep.passes.low": "passes",
    "sleep.passes.high": "passes", "sleep.loop.layers": "blocks", "sleep.gradient.passes": "passes",
    "sleep.gradient.windows": "windows", "sleep.gradient.clip_state": "norm of a gradient", "data.sources.0.proportion": "ratio",
    "data.row": "tokens", "data.lane": "tokens", "data.workers": "processes of a rank", "data.cache_limit": "bytes",
    "optim.lr": "factor of an update", "optim.adam_lr": "factor of an update", "optim.betas": "factors", "optim.eps": "gradient",
    "optim.weight_decay": "factor", "optim.momentum": "factor", "optim.clip": "norm of the gradient",
    "optim.schedule.warmup": "steps", "optim.schedule.decay": "fraction of the steps", "optim.schedule.floor": "fraction of the peak",
    "train.steps": "steps", "train.tokens": "tokens", "train.batch": "rows", "train.micro": "rows", "train.seed": "seed",
    "train.z_loss": "factor", "train.gc_every": "steps", "train.profile": "steps", "train.guard.spike": "factor", "train.guard.streak": "steps", "train.guard.rollbacks": "times",
    "mesh.data": "processes", "mesh.pipe": "processes", "mesh.tensor": "processes", "mesh.group": "micro-batches",
    "mesh.zero": "stage", "mesh.timeout": "seconds", "checkpoint.every": "steps", "checkpoint.keep": "checkpoints",
    "checkpoint.keep_every": "steps", "eval.every": "steps", "eval.samples": "samples", "log.every": "steps",
    "rates.NAME.tune": "rate", "rates.NAME.value": "rate", "rates.NAME.at": "size", "rates.NAME.power": "exponent",
    "evaluate.passes": "passes", "evaluate.samples": "samples", "extrapolate.NAME.params": "parameters",
    "extrapolate.NAME.tokens": "tokens",
}  # fmt: skip
"""What the numbers of a key count, by its dotted path."""
HEAD = """# Keys

<!-- Printed from the classes by `python docs/keys.py > docs/keys.md`; a test compares them. -->

A recipe is a YAML file of the sections below; [Recipes](recipes.md) says how one is written. On the command line a key has its dotted
path: `sleeptrain train RECIPE optim.lr=0.01`. `sleeptrain train RECIPE --explain` prints every value of a recipe with its source.
"""


@dataclass(frozen=True)
class Key:
    """A key of a section."""

    path: str
    """Dotted; `0` stands for any element of a list, NAME for a name of one's own."""
    values: str
    """The values that it takes, in words."""
    default: str
    meaning: str
    numeric: bool
    """Whether its values are numbers."""


def sections(schema: type, path: str = "") -> Iterator[tuple[str, type, list[Key]]]:
    """(dotted path, class, keys) of a schema and of the sections in it, in their order."""
    told, keys, inner = documented(schema), [], []
    kinds = fields_of(schema)
    for item in fields(schema):
        if item.name not in kinds:
            continue
        kind, here = kinds[item.name], f"{path}{item.name}"
        below = [(f"{here}{step}", one) for step, one in held_sections(kind)]
        inner += below
        if not (len(members(kind)) == 1 and is_section(kind)):
            keys.append(Key(here, values(kind), default(item), told.get(item.name, ""), is_numeric(kind)))
    yield path.removesuffix("."), schema, keys
    for name, one in inner:
        yield from sections(one, f"{name}.")


def held_sections(kind: Any) -> Iterator[tuple[str, type]]:
    """The sections that a value may be or hold: (path below the key, class)."""
    for one in members(kind):
        step = ".0" if get_origin(one) is list else ".NAME" if get_origin(one) is dict else ""
        for part in members(get_args(one)[-1]) if step else (one,):
            if is_section(part):
                yield step, part


def values(kind: Any) -> str:
    """A type in words; mappings by name are `{NAME: ...}`."""
    if get_origin(kind) is dict:
        inner = get_args(kind)[1]
        return "a mapping" if inner is Any else f"{{NAME: {values(inner)}}}"
    if get_origin(kind) in (list, tuple):
        return f"a list: {values(get_args(kind)[0])}"
    if len(members(kind)) > 1:
        return " or ".join(values(one) for one in members(kind))
    return describe(kind)


def is_numeric(kind: Any) -> bool:
    """Whether a type has numbers: itself, as a choice, or as elements."""
    if kind in (int, float):
        return True
    arguments = () if get_origin(kind) is dict else get_args(kind)
    return any(one in (int, float) or (get_origin(one) is not None and is_numeric(one)) for one in arguments)


def default(item: Field[Any]) -> str:
    """The default as YAML in one line."""
    value = item.default if item.default_factory is MISSING else item.default_factory()
    return "required" if value is MISSING else f"`{json.dumps(plain(value)).strip(chr(34))}`"


def documented(section: type) -> dict[str, str]:
    """The docstrings of the fields of a section and of its bases."""
    told: dict[str, str] = {}
    for base in reversed(section.__mro__[:-1]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for before, after in zip(tree.body, tree.body[1:], strict=False):
            if (
                isinstance(before, ast.AnnAssign)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                told[ast.unparse(before.target)] = inspect.cleandoc(str(after.value.value)).replace("\n", " ")
    return told


def row(key: Key) -> str:
    """A line of the table."""
    cells = [f"`{key.path}`", key.meaning, key.values, UNITS.get(key.path, ""), key.default]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, schema, about in (
        ("Recipe", Recipe, ""),
        (
            "Study",
            Study,
            "The keys of a study file ([Studies](studies.md)). `key=value` on the command line changes it.\n",
        ),
    ):
        parts.append(f"## {title}\n" + (f"\n{about}" if about else ""))
        paths = [path for path, _, _ in sections(schema)]
        for path, section, keys in sections(schema):
            if not keys:
                continue
            if path:
                name = path if paths.count(path) == 1 else f"{path}: {', '.join(fields_of(section))}"
                parts.append(f"### {name}\n\n{inspect.cleandoc(section.__doc__ or '').split(chr(10) * 2)[0]}\n")
            parts.append("\n".join(["| key | meaning | values | unit | default |", "|---|---|---|---|---|", *map(row, keys)]) + "\n")  # fmt: skip
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(page())
