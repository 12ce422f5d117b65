"""The errors that a command reports without a stack trace."""

CONTINUE = 75
"""Exit status of what can be continued by the same command; sysexits.h calls it EX_TEMPFAIL, and SLURM's RequeueExit can name it."""


class UserError(Exception):
    """A wrong request: each of `errors` is shown on a line as it stands; exit status 2."""

    def __init__(self, errors: str | list[str]) -> None:
        self.errors = [errors] if isinstance(errors, str) else list(errors)
        super().__init__("\n".join(self.errors))


class RunFailed(Exception):
    """A right request that cannot go on: the message is shown as it stands; exit status 1."""


class TryAgain(Exception):
    """A right request that cannot go on now: the message is shown as it stands; exit status 75, run me again."""


class ProcessLost(TryAgain):
    """Another process of this run has ended or does not answer. Every process that notices it shows its message."""
