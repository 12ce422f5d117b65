"""The parity grid: every layout, recompute policy and optimizer compared step by step with plain autograd on one process.

`python -m tests.train.parity FILE` runs the trainings and writes the table.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from sleep_data import shards
from sleep_data.task import IGNORED, NO_GROUP, Arrays, TaskWindow, Vocabulary, generator, in_blocks
from sleeptrain.engine.optimizers import PLACEHOLDER
from sleeptrain.train.build_model import autograd_forward
from tests.distributed import run
from tests.execute import bf16
from tests.train.jobs import recipe_file, trained

BOUND = 1e-5
"""Largest relative difference of a loss, a gradient norm, or a tensor of the first step's gradients."""
LENGTH = 16

# AdamW divides a gradient by its own magnitude plus `eps`. With eps = 1e-8, entries that are pure rounding error take a full
# step in a random direction, and one process with a different micro-batch size differs from itself by 1e-5.
COMMON = [
    "train.steps=12", "train.batch=8", "checkpoint.every=0", "optim.clip=0.3", "optim.lr=0.0005", "optim.eps=1e-6", "model.init_std=0.01",
    "sleep.window=16", "sleep.passes=3", "model.layers=GAGA", "model.width=32", "model.mlp.hidden=48",
    "model.attention.heads=8", "model.attention.kv_heads=4", "model.attention.head_dim=8",
    "model.deltanet.key_heads=4", "model.deltanet.value_heads=8", "model.deltanet.head_dim=8",
]  # fmt: skip
HARD, SLIDING = "sleep.evict.mode=hard", "sleep.evict.mode=sliding"
CONTEXT, EVERY = "sleep.loop.trigger=context", "sleep.loop.trigger=every"
RANGE, TIED, UNTIED = "sleep.loop.layers=[1, 3]", "model.tie=true", "model.tie=false"
MUON = ["optim.name=muon", "optim.lr=0.00025", "optim.adam_lr=0.0005", "optim.ns_dtype=float32"]
PROGRAMS = {
    "context, hard, tied": [CONTEXT, HARD, TIED],
    "context, sliding, range, untied": [CONTEXT, SLIDING, RANGE, UNTIED],
    "every, hard, range, tied": [EVERY, HARD, RANGE, TIED],
    "every, sliding, untied": [EVERY, SLIDING, UNTIED],
    "every, hard, tied, Muon": [EVERY, HARD, TIED, *MUON],
}
AUTOGRAD = "plain autograd"
POLICIES = {
    f"one process, recompute {policy}": [f"train.recompute={policy}"] for policy in ("none", "block", "pass", "window")
}
LAYOUTS: dict[int, dict[str, list[str]]] = {
    1: {
        AUTOGRAD: [],
        **POLICIES,
        "one process, recompute window, offload": ["train.recompute=window", "train.offload=true"],
        "one process, micro-batches of 2": ["train.micro=2", "train.recompute=pass"],
    },
    2: {
        "data=2, ZeRO 1": ["mesh.data=2", "mesh.zero=1", "train.recompute=pass"],
        "data=2, ZeRO 2": ["mesh.data=2", "mesh.zero=2", "train.recompute=window", "train.micro=2"],
        "data=2, ZeRO 3": ["mesh.data=2", "mesh.zero=3"],
        "data=2, ZeRO 3, recompute window": ["mesh.data=2", "mesh.zero=3", "train.micro=2", "train.recompute=window"],
        "tensor=2": ["mesh.tensor=2", "train.recompute=pass"],
        "tensor=2, sequence": ["mesh.tensor=2", "mesh.sequence=true", "train.recompute=window"],
        "pipe=2": ["mesh.pipe=2", "train.recompute=window"],
    },
    4: {
        "tensor=4": ["mesh.tensor=4", "train.recompute=window"],
        "tensor=4, sequence": ["mesh.tensor=4", "mesh.sequence=true"],
        "pipe=4": ["mesh.pipe=4", "train.recompute=pass"],
        "pipe=2, tensor=2": ["mesh.pipe=2", "mesh.tensor=2", "train.recompute=window"],
        "pipe=2, tensor=2, sequence": ["mesh.pipe=2", "mesh.tensor=2", "mesh.sequence=true"],
        "data=2, pipe=2": ["mesh.data=2", "mesh.pipe=2", "train.recompute=block"],
        "data=2, pipe=2, ZeRO 2, groups of 2": [
            "mesh.data=2",
            "mesh.pipe=2",
            "mesh.zero=2",
            "train.micro=1",
            "mesh.group=2",
        ],
        "data=2, tensor=2, sequence": ["mesh.data=2", "mesh.tensor=2", "mesh.sequence=true", "train.recompute=block"],
        "data=2, tensor=2, ZeRO 2": ["mesh.data=2", "mesh.tensor=2", "mesh.zero=2"],
    },
}
"""Layouts and their overrides by number of processes."""

SHORT = """The checkpointed executor accumulates the gradients of a reused weight in float32; autograd accumulates them in the weight's
own dtype. One block of Gated DeltaNet and MLP, width 64, windows of 16 tokens, bf16 weights and activations; means over five
matrices."""


@dataclass(frozen=True)
class Recall:
    """Task of random tokens, skewed to low ids, in three windows, with a random number of targets per row.

    `last_only`: only the last window has targets, else all windows have.
    """

    last_only: bool

    name = "recall"
    version = 1
    label = None

    def labels(self) -> dict[str, str]:
        return {}

    def parameters(self) -> dict[str, Any]:
        return asdict(self)

    def inputs(self) -> None:
        return None

    def vocabulary(self) -> Vocabulary:
        return Vocabulary("symbols", tuple(map(str, range(41))), 41, pad=40)

    def windows(self) -> tuple[TaskWindow, ...]:
        return tuple(TaskWindow(w * LENGTH, (w + 1) * LENGTH, w == 2 or not self.last_only) for w in range(3))

    def blocks(self, split: str, samples: int | None, seed: int) -> Iterator[Arrays]:
        return in_blocks(self.generate, split, samples, seed)

    def baselines(self) -> dict[str, dict[str, float]]:
        return {}

    def generate(self, split: str, start: int, stop: int, seed: int) -> Arrays:
        """Samples [start, stop) of a split."""
        random, rows = generator(self.name, seed, split, start), stop - start
        tokens = (40 * random.random((rows, 3 * LENGTH)) ** 3).astype(np.int32)
        scored = random.random(tokens.shape) < random.random((rows, 1))
        if self.last_only:
            scored[:, : 2 * LENGTH] = False
        groups = np.full_like(tokens, NO_GROUP)
        targets = np.where(scored, np.roll(tokens, LENGTH + 1, 1), IGNORED).astype(np.int32)
        return {"tokens": tokens, "targets": targets, "groups": groups, "id": np.arange(start, stop, dtype=np.int64)}


@dataclass(frozen=True)
class TrainingResult:
    """Losses, gradient norms, first gradients and final weights of twelve training steps."""

    losses: list[float]
    norms: list[float]
    targets: list[int]
    gradients: Mapping[str, torch.Tensor]
    """Unsharded gradients of the first step, before clipping."""
    weights: Mapping[str, torch.Tensor]
    """Unsharded weights after the last step."""


Grid = dict[tuple[str, str], TrainingResult]
"""Results by program and layout."""


def is_supported(layout: str, program: str) -> bool:
    """Whether the layout leaves the whole matrices that Muon needs."""
    return "Muon" not in program or not ("tensor" in layout or "ZeRO 3" in layout)


def grid(folder: Path) -> Grid:
    """Run the whole grid, with one launch per number of processes."""
    for last_only in (True, False):
        shards.build(Recall(last_only), folder / f"last-only-{last_only}", {"train": 256}, 0)
    recipe_file(folder)
    found: Grid = {}
    for world, layouts in LAYOUTS.items():
        found |= run(_trainings, world, str(folder), layouts, timeout=1800)[0]
    return found


def _trainings(folder: str, layouts: Mapping[str, list[str]]) -> Grid:
    """Train every program on every layout of these processes; only rank 0 returns results."""
    where, found = Path(folder), Grid()
    # Layouts in the outer loop: DeepSpeed keeps the process groups of the first engine and expects them of every later one.
    for layout, overrides in layouts.items():
        for program, options in PROGRAMS.items():
            if not is_supported(layout, program):
                continue
            gradients: dict[str, torch.Tensor] = {}

            def prepare(setup: Any, gradients: dict[str, torch.Tensor] = gradients, layout: str = layout) -> None:
                _capture_first_gradients(setup, gradients)
                if layout == AUTOGRAD:
                    object.__setattr__(setup, "forward", autograd_forward(setup.job))

            name, data = f"{program} {layout}".replace(", ", "-"), where / f"last-only-{CONTEXT in options}"
            rows, weights = trained(where, name, data, [*COMMON, *options, *overrides], prepare)
            if dist.get_rank() == 0:
                losses, norms, targets = ([row[key] for row in rows] for key in ("loss", "grad_norm", "targets"))
                found[program, layout] = TrainingResult(losses, norms, targets, gradients, weights)
    return found


def _capture_first_gradients(setup: Any, gradients: dict[str, torch.Tensor]) -> None:
    """Wrap the engine's step so that the first call stores the unsharded gradients in `gradients`."""
    engine, step, captured = setup.engine, setup.engine.step, list[int]()

    def capturing_step(*args: Any) -> Any:
        if not captured:
            gradients.update(_full_gradients(engine) or {})
            captured.append(1)
        return step(*args)

    object.__setattr__(engine, "step", capturing_step)


def _full_gradients(engine: Any) -> dict[str, torch.Tensor] | None:
    """Unsharded gradients by parameter name; None on ranks that do not gather them."""
    from deepspeed.utils import safe_get_full_grad

    gatherer, gradients = engine._state_gatherer, {}
    for name, parameter in engine.module.named_parameters():
        if name != PLACEHOLDER:
            whole = safe_get_full_grad(parameter).float()
            gradients[name] = (whole if gatherer is None else gatherer.full(name, whole)).clone()
    return gradients if gatherer is None else gatherer.gather_full_state(gradients)


def max_relative_difference(values: list[float], reference: list[float]) -> float:
    """The largest relative difference over the steps."""
    assert len(values) == len(reference) == 12
    return max(abs(a - b) / abs(b) for a, b in zip(values, reference, strict=True))


def worst_tensor(tensors: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor]) -> tuple[float, str]:
    """The largest relative difference of a tensor (norm of the difference over the norm), and the tensor's name."""
    assert tensors.keys() == reference.keys()
    return max((((tensors[n] - g).norm() / g.norm()).item(), n) for n, g in reference.items())


def same_bits(result: TrainingResult, reference: TrainingResult) -> bool:
    """Whether losses, norms, gradients and final weights of two trainings are equal bit for bit."""
    same_metrics = result.losses == reference.losses and result.norms == reference.norms
    pairs = [(result.gradients, reference.gradients), (result.weights, reference.weights)]
    return same_metrics and all(torch.equal(a[n], b[n]) for a, b in pairs for n in b)


def table(found: Grid) -> str:
    """The whole of docs/parity.md."""
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("torch", "deepspeed", "megatron-core"))
    lines = [
        "# Parity",
        "",
        "Training does not depend on the parallel layout. The reference is fp32 training on one process with plain autograd: twelve",
        "steps of a stack `GAGA` (width 32, 4 key heads with 8 value heads, N = 3, three windows of 16 tokens, gradients clipped in",
        "every step, a different number of targets in every row). Every other row is compared with it. Each cell: the largest relative",
        "difference of a step's loss / of a step's gradient norm / of a tensor of the first step's gradients, unsharded (norm of the",
        f"difference over the norm). A test checks the bound of {BOUND:.0e}. *Same bits*: losses, norms, gradients and final weights equal",
        "those of the row `one process, recompute none` bit for bit. A range: blocks 1 and 2 are looped, block 0 is the prelude and",
        "block 3 the coda.",
        "",
        f"Made by `python -m tests.train.parity docs/parity.md` on {platform.system()} {platform.machine()} CPUs with gloo; {versions}.",
        "No GPU run.",
        "",
        "| layout | " + " | ".join(PROGRAMS) + " |",
        "|---" * (len(PROGRAMS) + 1) + "|",
    ]
    for layouts in LAYOUTS.values():
        for layout in layouts:
            if layout != AUTOGRAD:
                lines.append(
                    f"| {layout} | " + " | ".join(_cell(found, program, layout) for program in PROGRAMS) + " |"
                )
    lines += [
        "",
        "Muon needs whole matrices and is refused where they are sharded: with tensor parallelism and with ZeRO 3.",
        "",
        "## bfloat16",
        "",
        SHORT,
        "",
        bf16.table(),
    ]
    return "\n".join(lines) + "\n"


def _cell(found: Grid, program: str, layout: str) -> str:
    if not is_supported(layout, program):
        return "refused"
    result, reference = found[program, layout], found[program, AUTOGRAD]
    loss = max_relative_difference(result.losses, reference.losses)
    norm = max_relative_difference(result.norms, reference.norms)
    gradients, _ = worst_tensor(result.gradients, reference.gradients)
    bits = layout in POLICIES and same_bits(result, found[program, "one process, recompute none"])
    return f"{loss:.0e} / {norm:.0e} / {gradients:.0e}" + (", same bits" if bits else "")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        page = table(grid(Path(made)))
    Path(sys.argv[1]).write_text(page)
