"""The two errors that a command reports without a stack trace."""


class UserError(Exception):
    """A wrong request: each of `errors` is shown on a line as it stands; exit status 2."""

    def __init__(self, errors: str | list[str]) -> None:
        self.errors = [errors] if isinstance(errors, str) else list(errors)
        super().__init__("\n".join(self.errors))


class RunFailed(Exception):
    """A right request that cannot go on: the message is shown as it stands; exit status 1."""
