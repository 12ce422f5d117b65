"""How a run stands, in a file of its folder: launchers such as torchrun and srun replace the exit status of ranks by their own."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from sleeptrain.run.scheduler import job_number

OUTCOME = "outcome.json"
State = Literal["running", "done", "stopped", "failed"]


def write_outcome(folder: Path, state: State, step: int | None = None, by: str | None = None) -> None:
    """Write the state of a run: `running`; `done`; `stopped`, which can be continued (exit status 75); `failed`.

    `by`: what asked it to stop, `file` or `signal`. A job script starts a run again that a signal has stopped. On a full disk the file
    stays as it was, with a warning: the status of the process says how the run ended.
    """
    path = folder / OUTCOME
    staged = path.with_name(OUTCOME + ".tmp")
    body = {"state": state, "step": step, "by": by, "job": job_number()}
    try:
        staged.write_text(json.dumps(body) + "\n")
        staged.replace(path)
    except OSError as error:
        print(f"warning: {path} cannot be written: {error.strerror}", file=sys.stderr, flush=True)
        with suppress(OSError):
            staged.unlink()


def read_outcome(folder: Path) -> dict[str, Any]:
    """What `write_outcome` wrote last; empty where the file is missing or damaged."""
    try:
        body = json.loads((folder / OUTCOME).read_text())
    except (OSError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}
