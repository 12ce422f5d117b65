"""The tasks by name, and how one is made from plain values (a YAML file, a command line)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from sleep_data.depo import Depo
from sleep_data.rule110 import Rule110
from sleep_data.task import Task
from sleep_data.text import Text

TASKS: dict[str, type] = {"rule110": Rule110, "depo": Depo, "text": Text}


def make(name: str, parameters: Mapping[str, Any]) -> Task:
    """The task `name` with these parameters and its defaults for all others. ValueError names what is wrong."""
    if name not in TASKS:
        raise ValueError(f"task {name!r} is not known{nearest(name, TASKS)}; the tasks are {', '.join(sorted(TASKS))}")
    kind = TASKS[name]
    known = {field.name: field for field in fields(kind)}
    unknown = [key for key in parameters if key not in known]
    if unknown:
        told = ", ".join(f"{key!r}{nearest(key, known)}" for key in unknown)
        raise ValueError(f"{name} has no parameter {told}; its parameters are {', '.join(known)}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in parameters.items()}
    for key, value in values.items():
        _check_type(name, key, value, str(known[key].type))
    return kind(**values)


def _check_type(task: str, key: str, value: Any, annotation: str) -> None:
    """Parameters are int, str, None, and tuples of these; the annotation says which of them a field takes."""
    single = value if isinstance(value, tuple) else (value,)
    kinds = {"int": int, "str": str, "None": type(None)}
    allowed = tuple(kind for word, kind in kinds.items() if word in annotation)
    right = all(isinstance(item, allowed) and not isinstance(item, bool) for item in single)
    if not right or (isinstance(value, tuple) and "tuple" not in annotation):
        shown = list(value) if isinstance(value, tuple) else value
        raise ValueError(f"{key}={shown!r} of {task} has the wrong type; it takes {annotation}")


def nearest(word: str, known: Any) -> str:
    """' (did you mean ...?)' for a word that is close to a known one, else nothing."""
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
