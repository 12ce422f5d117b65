"""What a search found, as text for a terminal and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sleeptrain.plan.device import DeviceMemory, needed
from sleeptrain.plan.hardware import Hardware
from sleeptrain.plan.memory import size
from sleeptrain.plan.search import NO_FIT, Found, Search
from sleeptrain.plan.show_time import time_json
from sleeptrain.plan.step_time import run_time

COLUMNS = ("s/step", "tokens/s", "MFU", "memory", "idle", "messages", "overrides")


def search_text(found: Search, processes: int, memory: DeviceMemory, hardware: Hardware, assumed: bool) -> str:
    """The best layouts as a table with the overrides to paste, and why the others lose. `assumed`: no cluster file was given."""
    lines = list(_lines(found, processes, memory, hardware))
    lines[1:1] = [f"hardware: {hardware}{' (assumed; --cluster says otherwise)' if assumed else ''}"]
    return "\n".join(lines)


def _lines(found: Search, processes: int, memory: DeviceMemory, hardware: Hardware) -> Iterator[str]:
    yield f"{found.seen:,} layouts of {processes} processes, against {memory}"
    yield ""
    if found.best:
        rows = [COLUMNS, *(_row(each, hardware) for each in found.best)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS) - 1)]
        yield from ("  ".join([*map(str.rjust, row, widths), row[-1]]) for row in rows)
        yield ""
        yield "The fastest layout of each mesh. Memory and time are those of exact plans; other layouts were estimated."
    elif found.least:
        least, choice = found.least
        yield f"No layout fits. The one that needs least is estimated at {size(least)}: {' '.join(choice.overrides())}"
    else:
        yield "Every layout is refused."
    yield "Not shown:"
    if found.slower:
        yield f"  {found.slower:>6,}  slower, or slower on the same mesh"
    for rule, n in sorted(found.refused.items(), key=lambda pair: -pair[1]):
        why = "do not fit" if rule == NO_FIT else f"{rule}: for instance, {found.reasons[rule]}"
        yield f"  {n:>6,}  {why}"


def _row(found: Found, hardware: Hardware) -> tuple[str, ...]:
    time, run = found.time, run_time(found.plan, found.time, hardware)
    assert run is not None  # its seconds are known
    exposed = sum(axis.exposed or 0.0 for axis in time.messages)
    return (
        f"{found.seconds:.4g}", f"{run.tokens / run.seconds:,.0f}", f"{run.mfu:.1%}", size(needed(found.plan)),
        f"{time.idle / found.seconds:.1%}", f"{exposed / found.seconds:.1%}", " ".join(found.choice.overrides()),
    )  # fmt: skip


def search_json(found: Search, processes: int, memory: DeviceMemory, hardware: Hardware) -> dict[str, Any]:
    """The same as JSON values."""
    return {
        "processes": processes, "layouts": found.seen,
        "device": {"bytes": memory.total, "usable": memory.usable},
        "best": [
            {"overrides": list(each.choice.overrides()), "memory": needed(each.plan)} | time_json(each.plan, each.time, hardware)
            for each in found.best
        ],
        "slower": found.slower, "refused": dict(found.refused), "reasons": dict(found.reasons),
        "least": None if found.least is None else {"memory": found.least[0], "overrides": list(found.least[1].overrides())},
    }  # fmt: skip
