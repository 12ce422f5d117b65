"""Metrics in W&B: the mode, the check of its key before a run, and a run that prints its address instead of tables."""

from __future__ import annotations

import os
import secrets
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from sleeptrain.errors import UserError
from sleeptrain.train.config import Log


def wandb_mode(log: Log) -> Literal["online", "offline", "disabled"]:
    """The mode of `wandb.init`: WANDB_MODE of the environment if it is set, else `log.wandb.mode`, which is not `off`."""
    given = os.environ.get("WANDB_MODE", log.wandb.mode)
    return "offline" if given in ("offline", "dryrun") else "disabled" if given == "disabled" else "online"


def quiet_wandb() -> Any:
    """The package wandb, which prints warnings and errors alone: otherwise it ends every run with a table of all metrics.

    W&B reads this setting when it is first set up in a process. Where the check of a key or another program has done so, `quiet` of a
    run still leaves the table out.
    """
    import wandb

    wandb.setup(wandb.Settings(show_info=False))
    return wandb


def check_wandb(log: Log) -> None:
    """Raise UserError where rows shall be sent to W&B and there is no key for it. A W&B that is out of reach stops no run here."""
    if log.wandb.mode == "off" or wandb_mode(log) != "online":
        return
    import wandb

    with suppress(wandb.errors.Error):  # a key that cannot be verified now; `wandb.init` tries again
        if not wandb.login(prompt=False):
            raise UserError(
                "log.wandb.mode = online: there is no API key for W&B; run `wandb login` or set WANDB_API_KEY, or take "
                "log.wandb.mode=offline"
            )


class WandbRun:
    """A W&B run. Its id is stored in the run folder, so that a resumed run continues the same W&B run.

    W&B drops rows whose number is not above that of the last one: all rows of steps that a run makes again, after it went back or
    was killed. So rows are numbered by W&B's own step, which only grows, and charts have `step` on their axis.
    """

    def __init__(self, log: Log, folder: Path, config: dict[str, Any]) -> None:
        wandb = quiet_wandb()
        id_file = folder / "wandb-id"
        if not id_file.exists():
            id_file.write_text(secrets.token_hex(4))
        self._every = log.every
        self._unsent: dict[str, Any] | None = None
        self._run = wandb.init(
            project=log.wandb.project, name=log.wandb.name or folder.name, id=id_file.read_text(), resume="allow",
            mode=wandb_mode(log), dir=str(folder), config=config, settings=wandb.Settings(quiet=True),
        )  # fmt: skip
        self._say_address()
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self._number = int(self._run.step)
        """The next number that W&B accepts."""

    def write(self, row: dict[str, Any]) -> None:
        """Send one step, every `log.every` steps and where it was evaluated."""
        self._unsent = row
        if row["step"] % self._every == 0 or "eval_loss" in row:
            self._send(row)

    def _send(self, row: dict[str, Any]) -> None:
        """Send a row; of lists and tables, such as the loss by window, every entry by its index."""
        values = {key: value for key, value in row.items() if not isinstance(value, list | dict)}
        for key, entries in row.items():
            if isinstance(entries, list | dict):
                pairs = enumerate(entries) if isinstance(entries, list) else entries.items()
                values |= {f"{key}/{index}": entry for index, entry in pairs if entry is not None}
        number = max(self._number, row["step"])
        self._run.log(values, step=number)
        self._number, self._unsent = number + 1, None

    def close(self) -> None:
        """Send the last step, flush and finish the W&B run."""
        if self._unsent is not None:
            self._send(self._unsent)
        self._run.finish()
        if self._run.offline:
            words = f"wandb sync {shlex.quote(self._run.sync_dir)}"
            print(f"W&B: the run is stored; this sends it: {words}", file=sys.stderr, flush=True)
        self._say_address()

    def _say_address(self) -> None:
        """Print where the run is shown; a run that is not sent has no address."""
        if not self._run.offline and self._run.url:
            print(f"W&B: {self._run.url}", file=sys.stderr, flush=True)
