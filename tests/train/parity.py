"""The parity grid: every layout, recompute policy and optimizer compared with one process on plain autograd, step by step.

`python -m tests.train.parity docs/parity.md` runs it and writes the page.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from sleep_data import shards
from sleep_data.task import IGNORED, NO_GROUP, Arrays, TaskWindow, Vocabulary, generator, in_blocks
from tests.distributed import run
from tests.execute import bf16
from tests.train.gather import gatherer_of
from tests.train.jobs import by_autograd, recipe_file, trained

BOUND = 1e-5
"""Bound on the relative difference of a loss, a gradient norm, or a tensor of the first step's gradients."""
STEPS = 12
LENGTH = 16

# AdamW divides a gradient by its magnitude plus `eps`. With eps = 1e-8, elements that consist of rounding errors make full
# steps of random sign, and one process with other micro-batches differs from itself by 1e-5.
COMMON = [
    "train.batch=8", "checkpoint.every=0", "optim.clip=0.3", "optim.lr=0.0005", "optim.eps=1e-6", "model.init_std=0.01",
    "sleep.window=16", "sleep.passes=3", "model.layers=GAGA", "model.width=32", "model.mlp.hidden=48",
    "model.attention.heads=8", "model.attention.kv_heads=4", "model.attention.head_dim=8",
    "model.deltanet.key_heads=4", "model.deltanet.value_heads=8", "model.deltanet.head_dim=8",
]  # fmt: skip
HARD, SLIDING = "sleep.evict.mode=hard", "sleep.evict.mode=sliding"
CONTEXT, EVERY = "sleep.loop.trigger=context", "sleep.loop.trigger=every"
RANGE, TIED, UNTIED = "sleep.loop.layers=[1, 3]", "model.tie=true", "model.tie=false"
MUON = ["optim.name=muon", "optim.lr=0.00025", "optim.adam_lr=0.0005", "optim.ns_dtype=float32"]
REMEDIES = ["sleep.loop.feedback=gated", "model.residual_scale=0.4", "sleep.gradient.clip_state=0.02"]
PROGRAMS = {
    "context, hard, tied": [CONTEXT, HARD, TIED],
    "context, sliding, range, untied": [CONTEXT, SLIDING, RANGE, UNTIED],
    "every, hard, range, tied": [EVERY, HARD, RANGE, TIED],
    "every, sliding, untied": [EVERY, SLIDING, UNTIED],
    "every, gated, scaled, clipped": [EVERY, HARD, UNTIED, *REMEDIES],
    "every, hard, tied, Muon": [EVERY, HARD, TIED, *MUON],
}
AUTOGRAD, PLAIN = "plain autograd", "executor, recompute none"
POLICIES = {
    f"executor, recompute {policy}": [f"train.recompute={policy}"]
    for policy in ("none", "selective", "block", "pass", "window")
}
LAYOUTS: dict[int, dict[str, list[str]]] = {
    1: {
        AUTOGRAD: [],
        **POLICIES,
        "executor, recompute window, offload": ["train.recompute=window", "train.offload=true"],
        "executor, micro-batches of 2": ["train.micro=2", "train.recompute=pass"],
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
"""Changes to the recipe by number of processes and name of the layout."""
COVERED = {"tensor=4", "pipe=2, tensor=2", "data=2, pipe=2"}
"""Layouts that CI leaves to `make drills`: other layouts have every pair of their options of the mesh as well."""

BF16 = """The executor accumulates the gradients of all uses of a weight in float32; plain autograd accumulates them in the
weight's dtype. One block of Gated DeltaNet and MLP, width 64, windows of 16 tokens, bf16 weights and activations; means over
five matrices."""


@dataclass(frozen=True)
class Recall:
    """Random tokens, low ones more often, in three windows. Targets are random positions, a different number in every row: of the last
    window only if `asked`, else of all windows."""

    asked: bool

    name = "recall"
    version = 1
    label = None

    def labels(self) -> dict[str, str]:
        return {}

    def parameters(self) -> dict[str, Any]:
        return asdict(self)

    def inputs(self) -> None:
        return None

    def notes(self) -> list[str]:
        return []

    def vocabulary(self) -> Vocabulary:
        return Vocabulary("symbols", tuple(map(str, range(41))), 41, pad=40)

    def windows(self) -> tuple[TaskWindow, ...]:
        return tuple(TaskWindow(w * LENGTH, (w + 1) * LENGTH, w == 2 or not self.asked) for w in range(3))

    def blocks(self, split: str, samples: int | None, seed: int) -> Iterator[Arrays]:
        return in_blocks(self.generate, split, samples, seed)

    def baselines(self) -> dict[str, dict[str, float]]:
        return {}

    def generate(self, split: str, start: int, stop: int, seed: int) -> Arrays:
        """Samples [start, stop) of a split."""
        random, rows = generator(self.name, seed, split, start), stop - start
        tokens = (40 * random.random((rows, 3 * LENGTH)) ** 3).astype(np.int32)
        scored = random.random(tokens.shape) < random.random((rows, 1))
        if self.asked:
            scored[:, : 2 * LENGTH] = False
        nothing = np.full_like(tokens, NO_GROUP)
        targets = np.where(scored, np.roll(tokens, LENGTH + 1, 1), IGNORED).astype(np.int32)
        return {"tokens": tokens, "targets": targets, "groups": nothing, "id": np.arange(start, stop, dtype=np.int64)}


@dataclass(frozen=True)
class Ran:
    """Measurements of a training."""

    losses: list[float]
    norms: list[float]
    targets: list[int]
    gradients: Mapping[str, torch.Tensor]
    """Of the first step, full tensors, before clipping."""
    weights: Mapping[str, torch.Tensor]
    """Full tensors after the last step."""


Grid = dict[tuple[str, str], Ran]
"""By program and layout."""


def runs(layout: str, program: str) -> bool:
    """Whether a program can run on a layout: Muon needs whole matrices, which tensor parallelism and ZeRO 3 shard."""
    return "Muon" not in program or not ("tensor" in layout or "ZeRO 3" in layout)


def cells() -> list[tuple[str, str]]:
    """All (program, layout) of the grid that are compared with plain autograd."""
    spreads = [layout for layouts in LAYOUTS.values() for layout in layouts if layout != AUTOGRAD]
    return [(program, layout) for layout in spreads for program in PROGRAMS if runs(layout, program)]


def in_sample(program: str, layout: str) -> bool:
    """Whether CI runs a cell: of one process every third one, of several every sixth, so that each layout meets a program."""
    if layout in COVERED:
        return False
    if layout in LAYOUTS[1]:
        return (list(LAYOUTS[1]).index(layout) + list(PROGRAMS).index(program)) % 3 == 0
    several = [layout for processes, layouts in LAYOUTS.items() if processes > 1 for layout in layouts]
    return (several.index(layout) + list(PROGRAMS).index(program)) % 6 == 0


def grid(folder: Path, wanted: Collection[tuple[str, str]] | None = None, steps: int = STEPS) -> Grid:
    """Run the grid, or its cells in `wanted` with their references, for some steps: one launch per number of processes."""
    wanted = {
        *(cells() if wanted is None else wanted),
        *((program, layout) for program in PROGRAMS for layout in (AUTOGRAD, PLAIN)),
    }
    for asked in (True, False):
        shards.build(Recall(asked), folder / f"asked-{asked}", {"train": 256}, 0)
    recipe_file(folder)
    found: Grid = {}
    for world, layouts in LAYOUTS.items():
        found |= run(_trainings, world, str(folder), layouts, wanted, steps, timeout=1800)[0]
    return found


def _trainings(folder: str, layouts: Mapping[str, list[str]], wanted: Collection[tuple[str, str]], steps: int) -> Grid:
    """Train the wanted programs on every layout of these processes. Rank 0 returns the measurements."""
    where, found = Path(folder), Grid()
    # Layouts are the outer loop: DeepSpeed keeps the process groups of the first engine that has any and requires them later.
    for layout, spread in layouts.items():
        for program, options in PROGRAMS.items():
            if (program, layout) not in wanted:
                continue
            first: dict[str, torch.Tensor] = {}

            def prepare(setup: Any, first: dict[str, torch.Tensor] = first, layout: str = layout) -> None:
                _watch(setup, first)
                if layout == AUTOGRAD:
                    by_autograd(setup)

            name, data = f"{program} {layout}".replace(", ", "-"), where / f"asked-{CONTEXT in options}"
            rows, weights = trained(where, name, data, [*COMMON, *options, *spread, f"train.steps={steps}"], prepare)
            if dist.get_rank() == 0:
                losses, norms, targets = ([row[key] for row in rows] for key in ("loss", "grad_norm", "targets"))
                found[program, layout] = Ran(losses, norms, targets, first, weights)
    return found


def _watch(setup: Any, found: dict[str, torch.Tensor]) -> None:
    """Record the full gradients before the first step, gathered from their shards."""
    engine, step, seen = setup.engine, setup.engine.step, list[int]()

    def watched(*args: Any) -> Any:
        if not seen:
            found.update(_gradients(setup) or {})
            seen.append(1)
        return step(*args)

    object.__setattr__(engine, "step", watched)


def _gradients(setup: Any) -> dict[str, torch.Tensor] | None:
    from deepspeed.utils import safe_get_full_grad

    gatherer, found = gatherer_of(setup), {}
    for name, parameter in setup.engine.module.named_parameters():
        whole = safe_get_full_grad(parameter).float()
        found[name] = gatherer.full(name, whole).clone()
    return gatherer.gather_full_state(found)


def difference(one: list[float], other: list[float]) -> float:
    """The largest relative difference, step by step."""
    assert len(one) == len(other)
    return max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True))


def furthest(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> tuple[float, str]:
    """The largest relative error of a tensor (norm of the difference over the norm), and the tensor's name."""
    assert one.keys() == other.keys()
    return max((((one[n] - g).norm() / g.norm()).item(), n) for n, g in other.items())


def same_bits(one: Ran, other: Ran) -> bool:
    """Whether losses, gradient norms, gradients and final weights of two trainings are equal in every bit."""
    numbers = one.losses == other.losses and one.norms == other.norms
    pairs = [(one.gradients, other.gradients), (one.weights, other.weights)]
    return numbers and all(torch.equal(a[n], b[n]) for a, b in pairs for n in b)


def table(found: Grid) -> str:
    """The page docs/parity.md."""
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("torch", "deepspeed", "megatron-core"))
    lines = [
        "# Parity",
        "",
        "The layout does not change the training result. Twelve steps of a stack `GAGA` (width 32, 4 key heads with 8 value heads, N = 3,",
        "three windows of 16 tokens, gradients clipped in every step, a different number of targets in every row) in fp32 on one process",
        "with plain autograd, compared with the checkpointed executor and every layout. Each cell: the largest relative difference of the",
        "loss of a step / of the gradient norm of a step / of a full gradient tensor of the first step (norm of the difference over the",
        f"norm). A test asserts the bound {BOUND:.0e}; CI runs a sample of the grid, `make drills` the rest. *Same bits*: losses, norms,",
        "gradients and final weights equal those of the row `executor, recompute none` in every bit. *Range*: blocks 1 and 2 are looped,",
        "block 0 is prelude and block 3 coda.",
        "`make drills DRILL=random_layouts` draws recipes and layouts from all settings of [Supported combinations](support.md).",
        "",
        f"Made by `python -m tests.train.parity docs/parity.md` on {platform.system()} {platform.machine()} CPUs with gloo; {versions}.",
        "Not run on a GPU.",
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
        "Muon needs whole matrices, and is refused with tensor parallelism and ZeRO 3, which shard them.",
        "",
        "## bf16",
        "",
        BF16,
        "",
        bf16.table(),
    ]
    return "\n".join(lines) + "\n"


def _cell(found: Grid, program: str, layout: str) -> str:
    if not runs(layout, program):
        return "refused"
    ran, reference = found[program, layout], found[program, AUTOGRAD]
    loss, norm = difference(ran.losses, reference.losses), difference(ran.norms, reference.norms)
    gradients, _ = furthest(ran.gradients, reference.gradients)
    bits = layout in POLICIES and same_bits(ran, found[program, "executor, recompute none"])
    return f"{loss:.0e} / {norm:.0e} / {gradients:.0e}" + (", same bits" if bits else "")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        page = table(grid(Path(made)))
    Path(sys.argv[1]).write_text(page)
