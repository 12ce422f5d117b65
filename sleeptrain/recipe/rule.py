"""Rules over several sections, as a table: which values do not go together, why, and what to do."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from sleeptrain.config import Resolved

T = TypeVar("T")


@dataclass(frozen=True)
class Rule(Generic[T]):
    """One combination that is refused, with the reason (`message`) and the way out (`fix`), both without the values."""

    name: str
    fields: tuple[str, ...]
    """Dotted paths of the values it is about, which the error shows with their sources."""
    broken: Callable[[T], bool]
    """Whether a recipe breaks the rule. Asked only when all of `fields` are right by themselves."""
    message: str | Callable[[T], str]
    fix: str
    example: tuple[str, ...] = ()
    """Changes on the command line that break it in a small recipe, for documents and tests."""


def check(rules: Sequence[Rule[T]], resolved: Resolved[T], refused: Collection[str] = ()) -> list[str]:
    """One error for each broken rule. Rules about the dotted paths in `refused`, or what is below them, are left out."""
    errors = []
    for rule in rules:
        pairs = [(f"{name}.", f"{path}." if path else "") for name in rule.fields for path in refused]
        if any(name.startswith(path) or path.startswith(name) for name, path in pairs):
            continue
        try:
            broken = rule.broken(resolved.value)
        except Exception:
            if not refused:
                raise
            continue  # it also looked at a refused value outside `fields`, and must wait for a good one
        if broken:
            values = " with ".join(map(resolved.at, rule.fields))
            errors.append(f"{values}: {reason(rule, resolved.value)}; {rule.fix}")
    return errors


def reason(rule: Rule[T], value: T) -> str:
    """What is wrong with a value that breaks the rule, in words."""
    return rule.message if isinstance(rule.message, str) else rule.message(value)
