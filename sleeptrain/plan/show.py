"""A plan as text for a terminal, and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from sleeptrain.plan.device import DeviceMemory, needed
from sleeptrain.plan.memory import ProcessMemory, size
from sleeptrain.plan.plan import Plan
from sleeptrain.plan.traffic import Traffic
from sleeptrain.train.growth import depth_note
from sleeptrain.train.start import epochs, several

KEPT = {
    "h": "features", "received h": "features received", "S": "fast weights", "conv": "convolution tails",
    "kv": "attention cache", "body": "autograd graphs", "gradients": "activation grads",
}  # fmt: skip
"""Components of saved activations, as `estimate` names them and as they are printed."""


def text(plan: Plan, memory: DeviceMemory | None = None, chosen: Iterable[str] = (), advice: Iterable[str] = ()) -> str:
    """The plan for a terminal: sizes, memory of every stage, whether it fits, work and idle time, traffic, assumptions.

    `chosen`: why `auto` has chosen what it has. `advice`: lines about the fit.
    """
    parts = [
        _sizes(plan),
        [*_memory(plan), *_fit(plan, memory), *chosen, *advice],
        _work(plan),
        _traffic(plan),
        _notes(plan),
    ]
    return "\n\n".join(lines for part in parts if (lines := "\n".join(part)))


def _sizes(plan: Plan) -> Iterator[str]:
    job, p, batch = plan.job, plan.parameters, plan.layout.batch
    mesh, windows = job.mesh, plan.layout.windows
    parts = ", ".join(f"{name} {n:,}" for name, n in p.parts.items() if n and name != "total")
    passes = plan.schedule.program.passes
    yield f"parameters   {p.total:,}: {parts}"
    if p.frozen:
        yield f"             {p.total - p.frozen:,} trained, {p.frozen:,} frozen"
    if p.held > p.total:
        yield (
            f"             {p.held:,} on {mesh.pipe * mesh.tensor} processes: {p.copies:,} held more than once, "
            f"{p.padding:,} of padding"
        )
    yield f"processes    {plan.layout.world} = data {batch.data} x pipe {mesh.pipe} x tensor {mesh.tensor}, ZeRO {mesh.zero}"
    yield (
        f"a step       {job.train.batch} rows of {several(len(windows), 'window')}, {plan.layout.tokens_per_step:,} tokens, "
        f"{several(passes, 'pass')}"
    )
    yield (
        f"             each process: {several(batch.accumulation, 'backward')} of {several(batch.group, 'micro-batch')} of "
        f"{several(batch.micro, 'row')}"
    )
    if modes := [*["compiled blocks"] * bool(job.train.compiled), *["CUDA graphs"] * job.train.graphed]:
        yield f"             {', '.join(modes)}"
    yield f"a run        {several(plan.layout.steps, 'step')}{_budget(plan)}"
    if plan.layout.epochs:
        yield f"             epochs: {epochs(plan.layout)}"


def _budget(plan: Plan) -> str:
    """The tokens that a run is to have, and the padding of its rows, where they are known."""
    tokens, padding = plan.job.train.tokens, plan.layout.padding
    budget = f", {tokens:,} tokens without padding" if tokens else ""
    return budget + (f"; {padding:.1%} of all tokens are padding" if padding else "")


def _memory(plan: Plan) -> Iterator[str]:
    """Bytes of one process, one column per stage."""
    peaks = [memory.peak for memory in plan.memory]
    rows: list[tuple[str, Sequence[float]]] = [
        ("parameters", [m.parameters for m in plan.memory]),
        ("optimizer", [m.optimizer for m in plan.memory]),
        ("lanes", [m.lanes for m in plan.memory]),
        ("gradients", [phase.gradients for phase in peaks]),
    ]
    for name, word in KEPT.items():
        rows.append((word, [phase.kept.get(name, 0.0) for phase in peaks]))
    rows.append(("temporaries", [phase.work for phase in peaks]))
    rows = [(word, sizes) for word, sizes in rows if any(sizes)]
    rows.append(("total", [m.total for m in plan.memory]))
    heads = [f"stage {s}" for s in range(len(plan.memory))] if len(plan.memory) > 1 else ["bytes"]
    yield "memory of a process" + "".join(f"{head:>12}" for head in heads)
    held = [f"{share.elements:,}" for share in plan.parameters.stages]
    yield _row("  (elements held)", held)
    for word, sizes in rows:
        yield _row(f"  {word}", [size(n) for n in sizes])
    yield _row("  peak during", [phase.name for phase in peaks])
    if any(m.host for m in plan.memory):
        yield _row("  on the host", [size(m.host) for m in plan.memory])


def _fit(plan: Plan, memory: DeviceMemory | None) -> Iterator[str]:
    if memory is not None:
        yield f"{'fits' if memory.holds(plan) else 'does not fit'}: {size(needed(plan))} of the {memory}"


def _work(plan: Plan) -> Iterator[str]:
    recompute = plan.recompute_flops / plan.flops
    yield f"FLOPs of a step    {plan.flops:.4g}, and recompute adds {recompute:.0%}"
    if plan.seconds is not None and plan.speed is not None:
        yield (
            f"seconds of a step  {plan.seconds:.4g} for forward and backward at {plan.speed:.4g} FLOPs a second and process, "
            f"{plan.layout.tokens_per_step * (1 - (plan.layout.padding or 0)) / plan.seconds:,.0f} tokens a second"
        )
    if len(plan.estimate.stages) == 1:
        return
    for line, stage in zip(str(plan.balance).splitlines(), plan.estimate.stages, strict=False):
        seconds = "" if plan.seconds is None else f" ({stage.idle * plan.layout.batch.accumulation:.3g} s)"
        yield f"{line}  idle {stage.bubble:.1%}{seconds}"
    yield str(plan.balance).splitlines()[-1]
    yield f"idle               {plan.estimate.bubble:.1%} of all stages' time"


def _traffic(plan: Plan) -> Iterator[str]:
    axes = [axis for axis in plan.traffic[0] if any(t[axis] != 0.0 for t in plan.traffic)]
    if axes:
        yield "sent by a process in a step"
    for axis in axes:
        sent = [t[axis] for t in plan.traffic]
        yield _row(f"  {axis}", ["not known" if n is None else size(n) for n in sent])


def _notes(plan: Plan) -> Iterator[str]:
    """Warnings, assumptions, and what the plan leaves out."""
    if note := depth_note(plan.job, plan.schedule.program):
        yield f"Depth: {note}."
    if plan.data_layout.assumed:
        yield f"Assumed: {plan.data_layout.assumed}."
    if plan.job.mesh.data == 0 and plan.layout.batch.data == 1:
        yield "Assumed: one process on the data axis, since mesh.data = 0 takes all that are started; mesh.data=N plans for N."
    omitted = ["memory of the driver, of NCCL and of fragmentation", "reading data, evaluation, saving"]
    if plan.seconds is not None:
        omitted += ["time of messages and of the optimizer"]
    if plan.job.mesh.zero == 3:
        omitted += ["when ZeRO 3 gathers which parameters: all count as gathered"]
    if plan.job.train.graphed:
        most = size(max(process.graphs for process in plan.memory))
        omitted += [
            f"memory of CUDA graphs beside gradient accumulators: up to {most} for their pool, and their inputs and outputs"
        ]
    if plan.job.deepspeed:
        omitted += ["effects of the keys of deepspeed:"]
    if plan.job.mesh.sequence:
        omitted += ["copies beyond one that mesh.sequence gathers in front of a layer"]
    yield f"Not counted: {'; '.join(omitted)}."


def _row(word: str, cells: Iterable[str]) -> str:
    return f"{word:<19}" + "".join(f"{cell:>12}" if len(cell) < 12 else f" {cell}" for cell in cells)


def to_json(plan: Plan, memory: DeviceMemory | None = None) -> dict[str, Any]:
    """The plan as JSON values: bytes, FLOPs, seconds."""
    stages = [
        _stage(plan, s, memory, traffic)
        for s, (memory, traffic) in enumerate(zip(plan.memory, plan.traffic, strict=True))
    ]
    return {
        "processes": {"all": plan.layout.world, "data": plan.layout.batch.data, "pipe": plan.job.mesh.pipe, "tensor": plan.job.mesh.tensor},
        "zero": plan.job.mesh.zero, "recompute": plan.job.train.recompute,
        "compile": plan.job.train.compiled is not None, "cuda_graphs": plan.job.train.graphed,
        "device": None if memory is None else {"bytes": memory.total, "usable": memory.usable, "fits": memory.holds(plan)},
        "assumed": plan.data_layout.assumed, "depth": depth_note(plan.job, plan.schedule.program),
        "windows": [asdict(window) for window in plan.layout.windows],
        "rows": {"batch": plan.job.train.batch} | {name: n for name, n in asdict(plan.layout.batch).items() if name != "data"},
        "tokens": plan.layout.tokens_per_step, "padding": plan.layout.padding, "steps": plan.layout.steps, "epochs": plan.layout.epochs,
        "parameters": {
            "by_part": dict(plan.parameters.parts), "total": plan.parameters.total, "frozen": plan.parameters.frozen, "held": plan.parameters.held,
            "copies": plan.parameters.copies, "padding": plan.parameters.padding,
        },
        "flops": plan.flops, "recompute_flops": plan.recompute_flops, "seconds": plan.seconds, "speed": plan.speed,
        "idle": plan.estimate.bubble, "uneven": plan.balance.waste,
        "stages": stages,
    }  # fmt: skip


def _stage(plan: Plan, s: int, memory: ProcessMemory, traffic: Traffic) -> dict[str, Any]:
    held, stage = plan.parameters.stages[s], plan.estimate.stages[s]
    return {
        "blocks": list(held.blocks), "elements": held.elements,
        "optimizer_elements": held.partition(plan.layout.batch.data),
        "flops": {"forward": stage.forward, "recompute": stage.recompute, "backward": stage.backward}, "idle": stage.bubble,
        "memory": {
            "all": memory.total, "parameters": memory.parameters, "optimizer": memory.optimizer, "host": memory.host,
            "lanes": memory.lanes,
            "peak_during": memory.peak.name, "saved_activations": dict(memory.saved),
            "phases": {
                phase.name: {"gradients": phase.gradients, "kept": dict(phase.kept), "work": phase.work}
                for phase in memory.phases
            },
        },
        "sent": traffic,
    }  # fmt: skip
