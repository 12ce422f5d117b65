"""The `train:`, `checkpoint:`, `eval:` and `log:` sections."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from sleeptrain.config import Problem


@dataclass(frozen=True)
class GuardLimits:
    """When a step is skipped, and when a run with losses or gradients that are not finite goes back to its last checkpoint."""

    spike: float | None = None
    """A step whose gradient norm is more than this many times the median of the last 100 steps is skipped, once there are 20. null:
    a finite norm of any size is clipped (`optim.clip`) and applied."""
    streak: int = 3
    """Number of steps, one after another, that are skipped because a loss or gradient is not finite."""
    rollbacks: int = 3
    """How often a process goes back, each time without the data of the streak; then the run fails. 0: it fails at once."""

    def problems(self) -> list[Problem]:
        """Problems of this section alone."""
        problems = [Problem("streak", "must be at least 1 step")] if self.streak < 1 else []
        if self.spike is not None and not self.spike > 1:
            problems.append(Problem("spike", "must be above 1; null skips no step whose gradient is finite"))
        return problems + ([Problem("rollbacks", "must not be negative")] if self.rollbacks < 0 else [])


@dataclass(frozen=True)
class Train:
    """Length of the run, batch sizes, precision, activation checkpointing and kernels."""

    steps: int | None = None
    """Number of optimizer steps; set either this or `tokens`."""
    tokens: int | None = None
    """Number of training tokens, without padding. The last step is the first that is expected to reach it, with mean rows of each
    source: so the number of steps, which learning rates depend on, is known from the start."""
    batch: int = 64
    """Global batch size in rows."""
    micro: int | None = None
    """Micro-batch size in rows; null: all rows of the process."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Dtype of parameters and features. The fast weights, the weights that the optimizer updates, and its moments are fp32 with both."""
    seed: int = 0
    """Seed of the initial parameters and of the data order."""
    z_loss: float = 0.0
    """Weight of the z-loss: the gradient is that of the loss plus this times log(Z)^2 of every target, where Z is the denominator of the
    softmax. It keeps logits small; 1e-5 to 1e-4 are usual. `loss` in metrics is without it."""
    recompute: Literal["auto", "none", "selective", "block", "pass", "window"] = "none"
    """Activation checkpointing: the unit that is recomputed in backward. `none` saves all activations. `selective` saves, beside what
    `block` does, the outputs of matrix products, attention and the delta rule, and recomputes norms, gates, convolutions, rotary
    embeddings and the head; the graphs of `compile` do so themselves. `block` saves the input
    features of every block and the input state of every pass. `pass` saves the input features and state of every pass.
    `window` saves the state at window starts and, while a window is recomputed, the inputs of its passes. `auto`: the command
    chooses the one that recomputes least among those whose planned memory fits the device."""
    offload: bool = False
    """Offload the checkpoints that `recompute` saves to host memory until backward."""
    kernels: Literal["auto", "chunked", "require_fused"] = "auto"
    """Implementation of the fast-weight operators. `auto`: fused kernels on a GPU that has verified them and passes this
    run's self-test, else plain torch. `chunked`: plain torch. `require_fused`: fused kernels; without them the run is
    refused."""

    compile: Literal["auto"] | bool = "auto"
    """Compile every block with torch.compile, forward and backward, so that elementwise work is fused into few kernels. The first
    steps take a minute longer, less with a warm cache. `auto`: on a GPU, where no rule refuses it; blocks that cannot be compiled then
    run uncompiled, with a warning. `true` raises there, and needs a C++ compiler on a CPU."""
    cuda_graphs: Literal["auto"] | bool = "auto"
    """Capture every kind of pass (forward, recompute, backward) once as a CUDA graph and replay it, so that a pass takes a few
    launches. A graph's first replays are compared with the eager pass; a graph that differs is not used. `auto`: on a GPU, where no
    rule refuses it, without `mesh.pipe` and `mesh.tensor`, where the graphs fit into the memory beside the plan."""

    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """Precision of float32 matrix products, as torch.set_float32_matmul_precision takes it: `high` allows TF32 on a GPU, `medium` also
    bfloat16. Products of bf16 training do not depend on it."""
    deterministic: bool = False
    """Let torch use deterministic algorithms only, so that a repeated run has the same bits on a GPU, too. An operator that has none
    fails. It may be slower."""
    gc_every: int = 50
    """Steps between collections of Python's garbage collector, at the same steps on all ranks; 0 leaves them to Python, whose moments
    differ from rank to rank."""
    profile: tuple[int, ...] = ()
    """Steps of which every rank writes a profile into the run folder: profile/step-STEP.rank-RANK.json.gz, a trace for
    https://ui.perfetto.dev, and .txt, a table of the operators that take most time. Profiled steps are slower."""
    guard: GuardLimits = field(default_factory=GuardLimits)

    @property
    def recompute_policy(self) -> Literal["none", "selective", "block", "pass", "window"]:
        """`recompute`, once it is no longer `auto`. Raises ValueError before."""
        if self.recompute == "auto":
            raise ValueError("train.recompute is auto: choose a policy first, as plan.resolve_recompute does")
        return self.recompute

    @property
    def schedule_policy(self) -> Literal["none", "selective", "block", "pass", "window"]:
        """`recompute_policy` as the schedule sees it. Compiled blocks follow `selective` within their graphs, which are kept whole."""
        return "none" if self.compiled == "selective" else self.recompute_policy

    @property
    def compiled(self) -> Literal["none", "selective"] | None:
        """What the graph of a compiled block saves: what torch.compile chooses, or products alone; None: blocks are not compiled.

        `auto` is off until `plan.resolve_auto` has chosen for a device.
        """
        if self.compile is not True:
            return None
        return "selective" if self.recompute == "selective" else "none"

    @property
    def graphed(self) -> bool:
        """Whether passes are CUDA graphs; `auto` as for `compiled`."""
        return self.cuda_graphs is True

    def problems(self) -> list[Problem]:
        """Problems of this section alone."""
        return list(self._problems())

    def _problems(self) -> Iterator[Problem]:
        if (self.steps is None) == (self.tokens is None):
            yield Problem("steps", "set exactly one of train.steps and train.tokens; =null takes back the other")
        for name in ("steps", "tokens", "micro"):
            if (value := getattr(self, name)) is not None and value < 1:
                yield Problem(name, "must be at least 1")
        if any(step < 1 for step in self.profile):
            yield Problem("profile", "is a list of steps, which are counted from 1")
        if self.batch < 1:
            yield Problem("batch", "must be at least 1 row")
        if not 0 <= self.z_loss < float("inf"):
            yield Problem("z_loss", "must be a number of at least 0; 0 trains without")
        if self.gc_every < 0:
            yield Problem("gc_every", "must not be negative; 0 leaves garbage collection to Python")
        if self.seed < 0:
            yield Problem("seed", "must not be negative")


@dataclass(frozen=True)
class Checkpoint:
    """Interval and retention of checkpoints. A run also saves when it ends and when it is interrupted."""

    every: int = 1000
    """Steps between checkpoints; 0 saves at the end only."""
    keep: int = 2
    """Number of newest checkpoints to keep."""
    keep_every: int = 0
    """Checkpoints of steps that are multiples of this are kept for ever; 0: none."""
    background: bool = True
    """Training goes on while a copy of the state is written. It needs that much more host memory."""

    def problems(self) -> list[Problem]:
        """Problems of this section alone."""
        problems = [Problem("every", "must not be negative")] if self.every < 0 else []
        problems += [Problem("keep_every", "must not be negative")] if self.keep_every < 0 else []
        return problems + ([Problem("keep", "must keep at least 1")] if self.keep < 1 else [])


@dataclass(frozen=True)
class Eval:
    """Evaluation on held-out data while training: `eval_loss` and more in the rows of metrics.jsonl."""

    every: int = 0
    """Steps between evaluations, of which there is one after the last step, too; 0: none. Of the checkpoints of evaluated steps,
    the one with the lowest loss is kept for ever."""
    samples: int | None = None
    """Number of samples of `data.eval_split` of every source, from the first on; null: all."""

    def problems(self) -> list[Problem]:
        """Problems of this section alone."""
        problems = [Problem("every", "must not be negative")] if self.every < 0 else []
        few = self.samples is not None and self.samples < 1
        return problems + ([Problem("samples", "must be at least 1; null takes all")] if few else [])


@dataclass(frozen=True)
class Wandb:
    """Weights & Biases."""

    mode: Literal["off", "offline", "online"] = "off"
    """Where rows go; `offline` writes them into the run folder for `wandb sync`. WANDB_MODE overrides it, unless it is `off`."""
    project: str = "sleeptrain"
    """Project of W&B."""
    name: str | None = None
    """Display name of the run; null: the name of the run folder."""


@dataclass(frozen=True)
class Log:
    """Logging intervals. `metrics.jsonl` in the run folder always has every step."""

    every: int = 10
    """Steps between progress lines on a terminal without progress bar, and between rows sent to W&B."""
    wandb: Wandb = field(default_factory=Wandb)

    def problems(self) -> list[Problem]:
        """Problems of this section alone."""
        return [Problem("every", "must be at least 1")] if self.every < 1 else []
