"""A plan in words, and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from sleeptrain.plan.memory import ProcessMemory
from sleeptrain.plan.plan import Plan
from sleeptrain.plan.traffic import Traffic

KEPT = {
    "h": "features", "received h": "features received", "S": "fast weights", "conv": "convolution tails",
    "kv": "attention cache", "body": "graphs", "gradients": "adjoints",
}  # fmt: skip
"""What waits for backward, as `price` calls it and in words."""


def text(plan: Plan) -> str:
    """The plan for a terminal: sizes, what every stage holds, work and waiting, what is taken for granted."""
    parts = [_sizes(plan), _memory(plan), _work(plan), _traffic(plan), _notes(plan)]
    return "\n\n".join(lines for part in parts if (lines := "\n".join(part)))


def _sizes(plan: Plan) -> Iterator[str]:
    job, p, split = plan.job, plan.parameters, plan.split
    mesh, windows = job.mesh, plan.layout.windows
    parts = ", ".join(f"{name} {n:,}" for name, n in p.parts.items() if n and name != "total")
    asleep = max(op.of for ops, _ in plan.schedule.program.by_window() for op in ops)
    yield f"parameters   {p.total:,}: {parts}"
    if p.held > p.total:
        among = mesh.pipe * mesh.tensor
        yield f"             {p.held:,} on {among} processes: {p.copies:,} held more than once, {p.padding:,} of padding"
    yield f"processes    {plan.world} = data {plan.data} x pipe {mesh.pipe} x tensor {mesh.tensor}, ZeRO {mesh.zero}"
    yield (
        f"a step       {job.train.batch} rows of {_several(len(windows), 'window')}, {plan.tokens:,} tokens, "
        f"{_several(asleep, 'pass')}"
    )
    yield (
        f"             each process: {_several(split.accumulation, 'backward')} of {_several(split.group, 'micro-batch')} of "
        f"{_several(split.micro, 'row')}"
    )


def _memory(plan: Plan) -> Iterator[str]:
    """Bytes of one process, a column a stage."""
    worst = [memory.worst for memory in plan.memory]
    rows: list[tuple[str, Sequence[float]]] = [
        ("parameters", [m.parameters for m in plan.memory]),
        ("optimizer", [m.optimizer for m in plan.memory]),
        ("gradients", [moment.gradients for moment in worst]),
    ]
    for name, word in KEPT.items():
        rows.append((word, [moment.kept.get(name, 0.0) for moment in worst]))
    rows.append(("work", [moment.work for moment in worst]))
    rows = [(word, sizes) for word, sizes in rows if any(sizes)]
    rows.append(("all", [m.total for m in plan.memory]))
    heads = [f"stage {s}" for s in range(len(plan.memory))] if len(plan.memory) > 1 else ["bytes"]
    yield "memory of a process" + "".join(f"{head:>12}" for head in heads)
    held = [f"{share.elements:,}" for share in plan.parameters.stages]
    yield _row("  (elements held)", held)
    for word, sizes in rows:
        yield _row(f"  {word}", [size(n) for n in sizes])
    yield _row("  needed most in", [moment.name for moment in worst])
    if any(m.host for m in plan.memory):
        yield _row("  on the host", [size(m.host) for m in plan.memory])


def _work(plan: Plan) -> Iterator[str]:
    again = plan.again / plan.flops
    yield f"FLOPs of a step    {plan.flops:.4g}, and {again:.0%} of that for what is computed again"
    if plan.seconds is not None and plan.speed is not None:
        yield (
            f"seconds of a step  {plan.seconds:.4g} for forward and backward at {plan.speed:.4g} FLOPs a second and process, "
            f"{plan.tokens / plan.seconds:,.0f} tokens a second"
        )
    if len(plan.estimate.stages) == 1:
        return
    for line, stage in zip(str(plan.balance).splitlines(), plan.estimate.stages, strict=False):
        seconds = "" if plan.seconds is None else f" ({stage.idle * plan.split.accumulation:.3g} s)"
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
    """What is taken for granted, and what is left out."""
    if plan.layout.assumed:
        yield f"Assumed: {plan.layout.assumed}."
    if plan.job.mesh.data == 0 and plan.data == 1:
        yield "Assumed: one process on the data axis; mesh.data = 0 takes all there are; mesh.data=N says how many."
    left = ["what the driver, NCCL and the allocator's fragments take", "reading data, evaluation, saving"]
    if plan.seconds is not None:
        left += ["time of messages and of the optimizer"]
    if plan.job.mesh.zero == 3:
        left += ["when ZeRO 3 gathers parameters: all are counted as gathered"]
    if plan.job.train.cuda_graphs:
        left += [
            "what train.cuda_graphs keeps besides sums of gradients: inputs and outputs of recordings, work of the largest"
        ]
    if plan.job.deepspeed:
        left += ["what the keys of deepspeed: change"]
    if plan.job.mesh.sequence:
        left += ["what mesh.sequence gathers in front of a layer beyond one copy"]
    yield f"Not counted: {'; '.join(left)}."


def _row(word: str, cells: Iterable[str]) -> str:
    return f"{word:<19}" + "".join(f"{cell:>12}" if len(cell) < 12 else f" {cell}" for cell in cells)


def _several(n: int, word: str) -> str:
    plural = f"{word}es" if word.endswith(("s", "ch")) else f"{word}s"
    return f"{n} {word if n == 1 else plural}"


def size(n: float) -> str:
    """Bytes in words: `3.74 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(n) < 1024 or unit == "TiB":
            break
        n /= 1024
    return f"{n:.0f} {unit}" if unit == "B" else f"{n:.3g} {unit}" if n < 1000 else f"{n:.0f} {unit}"


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON values: bytes, FLOPs, seconds."""
    stages = [
        _stage(plan, s, memory, traffic)
        for s, (memory, traffic) in enumerate(zip(plan.memory, plan.traffic, strict=True))
    ]
    return {
        "processes": {"all": plan.world, "data": plan.data, "pipe": plan.job.mesh.pipe, "tensor": plan.job.mesh.tensor},
        "zero": plan.job.mesh.zero,
        "assumed": plan.layout.assumed,
        "windows": [asdict(window) for window in plan.layout.windows],
        "rows": {"batch": plan.job.train.batch} | asdict(plan.split),
        "tokens": plan.tokens,
        "parameters": {
            "by_part": dict(plan.parameters.parts), "total": plan.parameters.total, "held": plan.parameters.held,
            "copies": plan.parameters.copies, "padding": plan.parameters.padding,
        },
        "flops": plan.flops, "flops_again": plan.again, "seconds": plan.seconds, "speed": plan.speed,
        "idle": plan.estimate.bubble, "uneven": plan.balance.waste,
        "stages": stages,
    }  # fmt: skip


def _stage(plan: Plan, s: int, memory: ProcessMemory, traffic: Traffic) -> dict[str, Any]:
    share, price = plan.parameters.stages[s], plan.estimate.stages[s]
    return {
        "blocks": list(share.blocks), "elements": share.elements, "optimizer_elements": share.partition(plan.data),
        "flops": {"forward": price.forward, "recompute": price.recompute, "backward": price.backward}, "idle": price.bubble,
        "memory": {
            "all": memory.total, "parameters": memory.parameters, "optimizer": memory.optimizer, "host": memory.host,
            "most_in": memory.worst.name, "kept_for_backward": dict(memory.turn),
            "moments": {
                moment.name: {"gradients": moment.gradients, "kept": dict(moment.kept), "work": moment.work}
                for moment in memory.moments
            },
        },
        "sent": traffic,
    }  # fmt: skip
