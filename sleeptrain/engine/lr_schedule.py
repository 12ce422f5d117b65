"""The learning-rate multiplier of a step: a pure function of the step, so that resuming needs no scheduler state."""

from __future__ import annotations

import math

from sleeptrain.engine.config import LRSchedule


def lr_multiplier(schedule: LRSchedule, step: int, steps: int) -> float:
    """The factor on every peak learning rate at `step`, counted from 0, of a run of `steps`.

    Warm-up gives (step + 1) / warmup, so that step 0 is not wasted and step `warmup - 1` has the peak rate. Then `cosine`
    decays along half a cosine, and `wsd` stays at the peak and decays linearly over the last `decay` of the run (Hu et al.
    2024, MiniCPM). Both reach `floor` at step `steps`, one past the last, and stay there.
    """
    if step < schedule.warmup:
        return (step + 1) / schedule.warmup
    if schedule.name == "constant":
        return 1.0
    if schedule.name == "cosine":
        decay_start = min(schedule.warmup, steps)
    else:
        decay_start = max(schedule.warmup, steps - max(1, round(schedule.decay * steps)))
    if step < decay_start:
        return 1.0
    progress = 1.0 if step >= steps else (step - decay_start) / (steps - decay_start)
    remaining = 0.5 * (1.0 + math.cos(math.pi * progress)) if schedule.name == "cosine" else 1.0 - progress
    return schedule.floor + (1.0 - schedule.floor) * remaining
