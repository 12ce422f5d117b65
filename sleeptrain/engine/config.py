"""The `optim:` section: which optimizer, at which rates, and how the rates change over a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sleeptrain.config.errors import Problem


@dataclass(frozen=True)
class LRSchedule:
    """How the learning rate changes over a run; `engine.schedule.multiplier` computes it."""

    name: Literal["constant", "cosine", "wsd"] = "cosine"
    """What follows the warm-up: nothing, half a cosine, or a plateau and then a straight line (warm-up, stable, decay)."""
    warmup: int = 0
    """Steps over which the rate rises in a straight line to its full value."""
    decay: float = 0.2
    """With wsd: the fraction of all steps, at the end, over which the rate falls."""
    floor: float = 0.0
    """What the rate falls to, as a fraction of its full value."""

    def problems(self) -> list[Problem]:
        """What is wrong with the values, one by one."""
        found = []
        if self.warmup < 0:
            found.append(Problem("warmup", "must be 0 or a number of steps"))
        if not 0 < self.decay <= 1:
            found.append(Problem("decay", "is a fraction of the run: above 0 and at most 1"))
        if not 0 <= self.floor <= 1:
            found.append(Problem("floor", "is a fraction of the full rate: from 0 to 1"))
        return found


@dataclass(frozen=True)
class Optim:
    """The optimizer. With `muon`, hidden matrices are updated by Muon and everything else by AdamW."""

    name: Literal["muon", "adamw"] = "adamw"
    lr: float = 1e-3
    """Full learning rate of the hidden matrices; of everything with `adamw`, unless adam_lr says otherwise."""
    adam_lr: float | None = None
    """Full learning rate of the rest: embeddings, head, norms, b and a projections, A_log, dt_bias, convolutions."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    """Decoupled, times the learning rate; not applied to vectors, A_log, dt_bias and convolutions."""
    momentum: float = 0.95
    """Muon's, with Nesterov's look-ahead."""
    ns_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """The type Newton-Schulz is computed in: bfloat16 is fast, float32 is for comparing layouts."""
    sum_dtype: Literal["float32", "bfloat16"] = "float32"
    """The type in which the gradients of a weight's many uses are summed; bfloat16 halves the memory of the sum and
    loses about 1 % of it at 64 uses, 4 % at 1,024."""
    clip: float = 1.0
    """Largest norm of the whole gradient, taken before any optimizer sees it; 0 does not clip."""
    schedule: LRSchedule = field(default_factory=LRSchedule)

    def problems(self) -> list[Problem]:
        """What is wrong with the values, one by one (the schedule reports its own)."""
        found = []
        for name in ("lr", "adam_lr", "eps"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                found.append(Problem(name, "must be above 0"))
        for name in ("weight_decay", "clip"):
            if not getattr(self, name) >= 0:
                found.append(Problem(name, "must be 0 or more"))
        if not all(0 <= beta < 1 for beta in self.betas):
            found.append(Problem("betas", "must be two numbers from 0 to below 1"))
        if not 0 <= self.momentum < 1:
            found.append(Problem("momentum", "must be from 0 to below 1"))
        if self.name == "muon" and self.adam_lr is None:
            found.append(
                Problem("adam_lr", "is needed with muon: its lr (often 0.02) is far too large for AdamW (often 0.001)")
            )
        return found
