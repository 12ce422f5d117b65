"""What a run says before its first step: device, mesh, model, data and the size of a step."""

from __future__ import annotations

import platform
from collections.abc import Iterator

import torch
from torch import nn

from sleeptrain.data.config import Data
from sleeptrain.data.manifest import Manifest
from sleeptrain.model.counts import parameters
from sleeptrain.model.deltanet import DeltaNet
from sleeptrain.model.language import LanguageModel
from sleeptrain.parallel.process import Process
from sleeptrain.train.layout import Layout
from sleeptrain.train.trained import trained_weights


def start_lines(layout: Layout, manifest: Manifest, process: Process) -> Iterator[str]:
    """One line each for device, model, data and step, and for a warm-up that the run does not end; known before model and engine are built."""
    job, mesh, batch = layout.job, layout.job.mesh, layout.batch
    with torch.device("meta"):
        model = LanguageModel(job.model, gated=job.sleep.gated)
    count, weights = parameters(model)["total"], trained_weights(job)
    trained = sum(p.numel() for name, p in model.named_parameters() if name in weights)
    sizes = f"data {batch.data} x pipe {mesh.pipe} x tensor {mesh.tensor}, ZeRO {mesh.zero}"
    yield f"device  {_device(process.device)}, {several(layout.world, 'process')}" + (
        f" = {sizes}" if layout.world > 1 else ""
    )
    some = f", {trained:,} of them trained" if trained < count else ""
    yield f"model   {count:,} parameters in {len(job.model.pattern)} blocks ({job.model.layers}){some}, {job.train.precision}"
    rows = manifest.samples(job.data.split)
    paths = ", ".join(source.path for source in job.data.sources)
    unit = "samples" if manifest.block is None else "rows"
    padding = f", {layout.padding:.1%} padding" if layout.padding else ""
    yield (
        f"data    {paths}: {rows:,} {unit} of {layout.length:,} tokens in {several(len(layout.windows), 'window')}{padding}"
    )
    if len(job.data.sources) > 1:
        yield f"mixture {mixture(job.data, layout.steps)}"
    if layout.epochs:
        yield f"epochs  {epochs(layout)}"
    passes = f"N = {job.sleep.max_passes}" if isinstance(job.sleep.passes, int) else f"N up to {job.sleep.max_passes}"
    yield (
        f"step    {job.train.batch:,} samples, {layout.tokens_per_step:,} tokens, {passes}, {job.optim.name}, "
        f"recompute {job.train.recompute}{', compiled' if job.train.compiled else ''}"
        f"{', CUDA graphs' if job.train.graphed else ''}; {layout.steps:,} steps"
    )
    if layout.steps < job.optim.schedule.warmup:
        yield f"rate    optim.schedule.warmup = {job.optim.schedule.warmup:,} is longer than the run: optim.lr is never reached"


def mixture(data: Data, steps: int) -> str:
    """The shares of the sources in the first step, and in the last one where they are others."""
    if data.sources[0].proportion is None:
        return f"{', '.join(data.names)}: every row once in each epoch"
    mix = data.mix(())
    first, last = ([share / mix.unit for share in mix.shares(step)] for step in (0, steps - 1))
    return ", ".join(
        f"{name} {a:.1%}" + (f" to {b:.1%}" if a != b else "")
        for name, a, b in zip(data.names, first, last, strict=True)
    )


def epochs(layout: Layout) -> str:
    """How often the whole run reads its data: by source where there are several."""
    shown = {name: f"{count:.3g}" if count < 100 else f"{count:,.0f}" for name, count in layout.epochs.items()}
    each = shown.values() if len(shown) == 1 else (f"{name} {count}" for name, count in shown.items())
    return f"{', '.join(each)} in the whole run"


def kernels_line(model: nn.Module) -> str:
    """What runs the fast-weight operators; known once the model is built."""
    fused = any(module.backend == "auto" for module in model.modules() if isinstance(module, DeltaNet))
    return f"kernels {'fused Triton kernels' if fused else 'plain torch'}"


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB)"
    return f"CPU ({platform.machine()}, {several(torch.get_num_threads(), 'thread')})"


def several(count: int, word: str) -> str:
    """A count with its noun: `1 pass`, `2 passes`."""
    plural = f"{word}es" if word.endswith(("s", "ch")) else f"{word}s"
    return f"{count:,} {word if count == 1 else plural}"
