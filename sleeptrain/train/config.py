"""The `train:`, `checkpoint:` and `log:` sections."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from sleeptrain.config.errors import Problem


@dataclass(frozen=True)
class Train:
    """How long, how much at a time, in which precision, and what is kept for backward."""

    steps: int | None = None
    """Optimizer steps; or say `tokens`."""
    tokens: int | None = None
    """Tokens read in all, padding included; the last step is the one that reaches them."""
    batch: int = 64
    """Rows of the global batch."""
    micro: int | None = None
    """Rows one process works on at a time; null: all of its share."""
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    """Decides initial values and the order of the data."""
    recompute: Literal["none", "block", "pass", "window"] = "none"
    """What is kept for backward: `none` recomputes nothing, `block` keeps the features entering every block and the state
    entering every pass, `pass` features and state entering every pass, `window` the state at window starts (and, while
    one window is recomputed, its passes' inputs)."""
    offload: bool = False
    """What `recompute` keeps waits for backward in the host's memory."""
    kernels: Literal["auto", "chunked", "require_fused"] = "auto"
    """What runs the fast-weight operators: `auto`, fused kernels on a GPU that has verified them and passes this run's
    self-test, else plain torch; `chunked`, plain torch; `require_fused`, fused kernels or none: the run does not start."""

    cuda_graphs: bool = False
    """Every kind of pass (forward; again and backward) is recorded once as a CUDA graph and replayed, so that a pass is
    launched in a few calls. Each recording is first held against the pass itself; one that differs is not used."""

    def problems(self) -> list[Problem]:
        """What is wrong with this section by itself."""
        return list(self._problems())

    def _problems(self) -> Iterator[Problem]:
        if (self.steps is None) == (self.tokens is None):
            yield Problem("steps", "say how long to train: exactly one of train.steps and train.tokens")
        for name in ("steps", "tokens", "micro"):
            if (value := getattr(self, name)) is not None and value < 1:
                yield Problem(name, "must be at least 1")
        if self.batch < 1:
            yield Problem("batch", "must be at least 1 row")
        if self.seed < 0:
            yield Problem("seed", "must not be negative")


@dataclass(frozen=True)
class Checkpoint:
    """When to save and how many to keep. A run also saves when it ends and when it is interrupted."""

    every: int = 1000
    """Steps between saves; 0 saves at the end only."""
    keep: int = 2
    """How many of the newest stay."""

    def problems(self) -> list[Problem]:
        """What is wrong with this section by itself."""
        found = [Problem("every", "must not be negative")] if self.every < 0 else []
        return found + ([Problem("keep", "must keep at least 1")] if self.keep < 1 else [])


@dataclass(frozen=True)
class Wandb:
    """Weights & Biases."""

    mode: Literal["off", "offline", "online"] = "off"
    project: str = "sleeptrain"
    name: str | None = None
    """Shown name of the run; null: the run folder's."""


@dataclass(frozen=True)
class Log:
    """What is written while training. `metrics.jsonl` in the run folder always has every step."""

    every: int = 10
    """Steps between lines on a terminal that cannot show a progress bar, and between rows sent to W&B."""
    wandb: Wandb = field(default_factory=Wandb)

    def problems(self) -> list[Problem]:
        """What is wrong with this section by itself."""
        return [Problem("every", "must be at least 1")] if self.every < 1 else []
