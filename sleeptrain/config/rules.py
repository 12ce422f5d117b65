"""Rules over several sections, as a table: which values do not go together, why, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sleeptrain.config.resolved import Resolved

T = TypeVar("T")


@dataclass(frozen=True)
class Rule(Generic[T]):
    """One combination that is refused."""

    name: str
    """A short name for tables and documents."""
    fields: tuple[str, ...]
    """Dotted paths of the values it is about, which the error shows with their sources."""
    broken: Callable[[T], bool]
    """Whether a recipe breaks the rule. Asked only when all of `fields` have good values."""
    message: str | Callable[[T], str]
    """What is wrong, without the values."""
    fix: str
    """What to do about it."""
    example: tuple[str, ...] = ()
    """Changes on the command line that break it in a small recipe, for documents and tests."""


def check(rules: Sequence[Rule[T]], resolved: Resolved[T], failed: Collection[str] = ()) -> list[str]:
    """One error for each broken rule. Rules about the dotted paths in `failed`, or what is below them, are left out."""
    errors = []
    for rule in rules:
        if any(_touches(name, path) for name in rule.fields for path in failed) or not _breaks(
            rule, resolved.value, failed
        ):
            continue
        values = " with ".join(resolved.at(name) for name in rule.fields)
        errors.append(f"{values}: {reason(rule, resolved.value)}; {rule.fix}")
    return errors


def reason(rule: Rule[T], value: T) -> str:
    """What is wrong with a value that breaks the rule, in words."""
    return rule.message if isinstance(rule.message, str) else rule.message(value)


def _breaks(rule: Rule[T], value: T, failed: Collection[str]) -> bool:
    try:
        return rule.broken(value)
    except Exception:
        # It also looked at a value outside `fields`; if some are bad or missing, the answer must wait for good ones.
        if failed:
            return False
        raise


def _touches(name: str, path: Any) -> bool:
    return path in ("", name) or name.startswith(f"{path}.") or path.startswith(f"{name}.")
