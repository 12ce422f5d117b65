"""Registry of tasks by name, and their construction from plain values of a YAML file or a command line."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from sleep_data.copying import Copy
from sleep_data.depo import Depo
from sleep_data.recall import Recall
from sleep_data.rule110 import Rule110
from sleep_data.state_tracking import StateTracking
from sleep_data.task import Task
from sleep_data.text import Text
from sleep_data.word_problems import WordProblems

TASKS: dict[str, type] = {
    "rule110": Rule110, "depo": Depo, "copy": Copy, "recall": Recall, "state": StateTracking, "word_problems": WordProblems,
    "text": Text,
}  # fmt: skip

DEFAULTS: dict[str, int | None] = {"train": 10_000, "test": 1_000, "seed": 0}
"""Settings of a task file beside the task's own parameters: samples of each split (null: all that exist) and the seed."""


def make(name: str, parameters: Mapping[str, Any]) -> Task | Text:
    """The task `name` with these parameters, and defaults for all others. ValueError names the wrong parameter."""
    if name not in TASKS:
        raise ValueError(f"task {name!r} is not known{nearest(name, TASKS)}; the tasks are {', '.join(sorted(TASKS))}")
    task_class: Any = TASKS[name]
    if not hasattr(task_class, "__dataclass_fields__"):
        raise ValueError(f"task {name!r}: its class {task_class.__name__} must be a frozen dataclass of its parameters")
    known = {field.name: field for field in fields(task_class)}
    unknown = [key for key in parameters if key not in known]
    if unknown:
        taken = [*known, *DEFAULTS]
        named = ", ".join(f"{key!r}{nearest(key, taken)}" for key in unknown)
        raise ValueError(f"{name} has no parameter {named}; its parameters are {', '.join(taken)}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in parameters.items()}
    for key, value in values.items():
        _check_type(name, key, value, str(known[key].type))
    return task_class(**values)


def _check_type(task: str, key: str, value: Any, annotation: str) -> None:
    """ValueError if a value does not fit the annotation of its field, which names int, str, None, or tuples of these."""
    items = value if isinstance(value, tuple) else (value,)
    types = {"int": int, "str": str, "None": type(None)}
    allowed = tuple(kind for word, kind in types.items() if word in annotation)
    fits = all(isinstance(item, allowed) and not isinstance(item, bool) for item in items)
    if not fits or (isinstance(value, tuple) and "tuple" not in annotation):
        shown = list(value) if isinstance(value, tuple) else value
        named = {"int": "a whole number", "str": "text", "tuple": "a list of these", "None": "null"}
        words = " or ".join(known for word, known in named.items() if word in annotation)
        raise ValueError(f"{key}={json.dumps(shown, default=str)} of {task} has the wrong type; it takes {words}")


def nearest(word: str, known: Iterable[str]) -> str:
    """The hint ' (did you mean ...?)' for a misspelt word; empty if no known word is similar."""
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
