"""The `optim:` section: the optimizer, its learning rates and their schedule."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sleeptrain.config import Problem


@dataclass(frozen=True)
class LRSchedule:
    """The learning-rate schedule; `lr_schedule.lr_multiplier` computes it."""

    name: Literal["constant", "cosine", "wsd"] = "cosine"
    """After the warm-up: constant, half a cosine, or warmup-stable-decay (a plateau, then a linear decay)."""
    warmup: int = 0
    """Steps of the linear warm-up to the peak learning rate."""
    decay: float = 0.2
    """With wsd: length of the decay, as a fraction of all steps."""
    floor: float = 0.0
    """Final learning rate, as a fraction of the peak."""

    def problems(self) -> list[Problem]:
        """Every invalid value, one problem each."""
        found = []
        if self.warmup < 0:
            found.append(Problem("warmup", "must be 0 or a number of steps"))
        if not 0 < self.decay <= 1:
            found.append(Problem("decay", "is a fraction of the run: above 0 and at most 1"))
        if not 0 <= self.floor <= 1:
            found.append(Problem("floor", "is a fraction of the peak rate: from 0 to 1"))
        return found


@dataclass(frozen=True)
class Optim:
    """The optimizer. With `muon`, Muon updates the hidden matrices and AdamW everything else."""

    name: Literal["muon", "adamw"] = "adamw"
    """`adamw` for all parameters; `muon` for the hidden matrices, with AdamW for the others."""
    lr: float = 1e-3
    """Peak learning rate of the hidden matrices, and of all other parameters unless adam_lr is set."""
    adam_lr: float | None = None
    """Peak learning rate of the other parameters: embeddings, head, norms, b and a projections, A_log, dt_bias, convolutions."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of AdamW's means of the gradient and of its square, by step."""
    eps: float = 1e-8
    """Added to the root of the mean square gradient in AdamW."""
    weight_decay: float = 0.1
    """Decoupled, times the learning rate; not applied to vectors, A_log, dt_bias and convolutions."""
    momentum: float = 0.95
    """Momentum of Muon, with Nesterov's look-ahead."""
    ns_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of Newton-Schulz in Muon and of what processes send for it: bfloat16 is fast, float32 is for comparing layouts."""
    trainable: tuple[str, ...] | None = None
    """The weights that are trained, as patterns (`*`, `?`, `[...]`) of names of weights or modules as in checkpoints; null: all. `layers.3`
    is block 3, `layers.G` every block of the kind G in `model.layers`, `layers.G.mixer` their mixers, `"!embed"` all but the embedding.
    The others are frozen: they have no gradient, no moments, no weight decay and no update, and gradients pass through them."""
    clip: float = 1.0
    """Maximum norm of the whole gradient, which is clipped before any optimizer; 0 means no clipping."""
    schedule: LRSchedule = field(default_factory=LRSchedule)

    def problems(self) -> list[Problem]:
        """Every invalid value, one problem each; the schedule reports its own."""
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
        if self.trainable is not None and not self.trainable:
            found.append(Problem("trainable", "names no weight; null trains all"))
        if self.name == "muon" and self.adam_lr is None:
            found.append(
                Problem(
                    "adam_lr", "is required with muon: Muon's lr (often 0.02) is far too large for AdamW (often 0.001)"
                )
            )
        return found
