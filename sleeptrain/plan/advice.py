"""What would make a plan fit, and the largest micro-batch that fits. Each is one change, and is planned exactly."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sleeptrain.config import Resolved
from sleeptrain.plan.choices import LayoutChoice, Layouts, divisors
from sleeptrain.plan.data_layout import DataLayout
from sleeptrain.plan.device import DeviceMemory, needed
from sleeptrain.plan.hardware import Hardware
from sleeptrain.plan.memory import size
from sleeptrain.plan.plan import Plan
from sleeptrain.plan.quick import QuickPlanner
from sleeptrain.plan.search import Reload, planned_exactly
from sleeptrain.recipe.recipe import Recipe
from sleeptrain.schedule import RECOMPUTE_POLICIES


@dataclass(frozen=True)
class Advice:
    """About one plan and one memory."""

    fits: bool
    changes: tuple[tuple[tuple[str, ...], float], ...]
    """Overrides of the command line that each make it fit, and the bytes of a process then; empty if it fits."""
    largest_micro: int | None
    """The largest micro-batch that fits with everything else as it is; None: none does."""

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        for overrides, n in self.changes:
            yield f"would fit: {' '.join(overrides)} needs {size(n)}"
        if not self.fits and not self.changes:
            yield "no single change of recompute, micro-batch, ZeRO, tensor or pipe makes it fit; --search looks at all together"
        yield f"largest train.micro that fits: {self.largest_micro or 'none'}"


def advise(reload: Reload, resolved: Resolved[Recipe], data_layout: DataLayout, plan: Plan, memory: DeviceMemory) -> Advice:  # fmt: skip
    """What to change where a plan does not fit a memory, and how large its micro-batches could be. `reload` as in `search`."""
    layouts, quick = Layouts(resolved, data_layout, memory.gpu), QuickPlanner(data_layout, Hardware())
    now = dataclasses.replace(LayoutChoice.of(plan.layout), group=resolved.value.mesh.group)

    def fitting(options: Sequence[LayoutChoice]) -> tuple[LayoutChoice, float] | None:
        """The first option that fits, and the bytes of a process."""
        for option in options:
            layout = layouts.of(option)
            if not isinstance(layout, tuple) and quick.estimate(layout).memory <= memory.usable:
                found = planned_exactly(reload, option, memory, Hardware())
                if found is not None:
                    return option, needed(found.plan)
        return None

    share = plan.layout.batch.rows_per_backward * plan.layout.batch.accumulation
    micros = [dataclasses.replace(now, micro=n) for n in reversed(divisors(share))]
    fits = memory.holds(plan)
    if fits:
        larger = fitting([option for option in micros if option.micro > now.micro])
        return Advice(True, (), larger[0].micro if larger else now.micro)
    smaller = fitting([option for option in micros if option.micro < now.micro])
    found = [smaller, *map(fitting, _kinds_of_change(now))]
    changes = tuple((_changed(now, each[0]), each[1]) for each in found if each)
    return Advice(False, changes, smaller[0].micro if smaller else None)


def _kinds_of_change(now: LayoutChoice) -> Iterator[list[LayoutChoice]]:
    """Choices that need less memory in one way, the smallest change of each kind first."""
    policies = list(RECOMPUTE_POLICIES)
    later = policies[policies.index(now.recompute) + 1 :]
    yield [dataclasses.replace(now, recompute=policy) for policy in later]
    yield [dataclasses.replace(now, zero=2)] if now.zero == 1 else []
    for axis in ("tensor", "pipe"):
        factors = [n for n in divisors(now.data) if n > 1]
        yield [dataclasses.replace(now, data=now.data // n, **{axis: getattr(now, axis) * n}) for n in factors]


def _changed(before: LayoutChoice, after: LayoutChoice) -> tuple[str, ...]:
    """The overrides that make one choice of another."""
    return tuple(new for old, new in zip(before.overrides(), after.overrides(), strict=True) if old != new)
