"""What a user did wrong or a run cannot get over, and how it is said; and one problem of one field."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """Something wrong with one field of a section, as its `problems(self) -> list[Problem]` reports it."""

    field: str
    """Dotted path of the field, relative to the section; empty for the section itself."""
    message: str
    """What is wrong and what to do about it; loading adds the value and where it came from."""


class UserError(Exception):
    """A wrong request: the message is shown as it stands, each of `errors` on a line, without a stack trace; exit status 2."""

    def __init__(self, errors: str | list[str]) -> None:
        self.errors = [errors] if isinstance(errors, str) else list(errors)
        super().__init__("\n".join(self.errors))


class RunFailed(Exception):
    """A right request that cannot go on: the message is shown as it stands, without a stack trace; exit status 1."""
