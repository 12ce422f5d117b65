"""What follows a streak of steps that are not finite: the last checkpoint again, without the data of the streak."""

from __future__ import annotations

import sys

from sleeptrain.errors import RunFailed
from sleeptrain.train.setup import Setup, resume


def go_back(setup: Setup, step: int) -> int:
    """Load the last checkpoint and leave out the data of the streak that ended at `step`; the step of the checkpoint. A collective.

    Raises RunFailed where there is no checkpoint, and where the run has gone back as often as it may.
    """
    setup.saver.wait()
    guard, streak = setup.guard, setup.guard.streak
    what = f"step {step}: loss or gradient was not finite {len(streak)} times in a row"
    way_out = (
        f"the weights were not changed by these steps; lower optim.lr = {setup.job.optim.lr}, or look at "
        f"{setup.folder / 'metrics.jsonl'}"
    )
    if guard.rollbacks_left == 0:
        limit = setup.job.train.guard.rollbacks
        raise RunFailed(f"{what}, after going back {limit} times (train.guard.rollbacks); {way_out}")
    left_out = setup.reader.left_out
    found = resume(setup.context, setup.reader, guard, setup.folder)
    if found is None:
        raise RunFailed(f"{what}, and there is no checkpoint to go back to; {way_out}")
    setup.reader.leave_out([*left_out, *streak])
    guard.streak, guard.rollbacks_left = [], guard.rollbacks_left - 1
    if setup.process.rank == 0:
        print(f"warning: {what}; going back to step {found}, without the data of these steps", file=sys.stderr)
    return found
