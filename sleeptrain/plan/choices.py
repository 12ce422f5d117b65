"""The layouts that a search looks at: values of the mesh, recompute and micro-batch, and which rule refuses them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sleeptrain.config import Resolved
from sleeptrain.config.load import SOURCE
from sleeptrain.errors import UserError
from sleeptrain.parallel.config import LayoutError
from sleeptrain.plan.automatic import without_auto
from sleeptrain.plan.data_layout import DataLayout
from sleeptrain.recipe.completion import complete
from sleeptrain.recipe.recipe import Recipe
from sleeptrain.recipe.rule import reason
from sleeptrain.recipe.rules import RULES
from sleeptrain.schedule import RECOMPUTE_POLICIES
from sleeptrain.train.layout import Layout, resolve_batch, resolve_layout

LARGEST_GROUP = 32
"""Micro-batches of a group, unless there are more stages. Larger ones shorten idle time by little, and take long to plan."""


@dataclass(frozen=True)
class LayoutChoice:
    """One layout, as the fields of a recipe that it sets."""

    data: int
    pipe: int
    tensor: int
    zero: int
    group: int
    micro: int
    recompute: str

    @classmethod
    def of(cls, layout: Layout) -> LayoutChoice:
        """The layout that a recipe has."""
        mesh, batch = layout.job.mesh, layout.batch
        policy = layout.job.train.recompute_policy
        return cls(batch.data, mesh.pipe, mesh.tensor, mesh.zero, batch.group, batch.micro, policy)

    @property
    def mesh(self) -> tuple[int, int, int]:
        """Sizes of the axes."""
        return self.data, self.pipe, self.tensor

    def overrides(self) -> tuple[str, ...]:
        """The choice as changes on the command line."""
        axes = [f"mesh.{name}={getattr(self, name)}" for name in ("data", "pipe", "tensor", "zero", "group")]
        return (*axes, f"train.micro={self.micro}", f"train.recompute={self.recompute}")

    def applied(self, resolved: Resolved[Recipe]) -> Resolved[Recipe]:
        """A recipe with this choice, not checked."""
        recipe = resolved.value
        axes = {name: getattr(self, name) for name in ("data", "pipe", "tensor", "zero", "group")}
        mesh = dataclasses.replace(recipe.mesh, **axes)
        train = dataclasses.replace(recipe.train, micro=self.micro, recompute=self.recompute)  # type: ignore[arg-type]
        return dataclasses.replace(resolved, value=dataclasses.replace(recipe, mesh=mesh, train=train))


def choices(resolved: Resolved[Recipe], processes: int) -> Iterator[LayoutChoice]:
    """Every layout of a number of processes, refused ones too. What the command line sets stays as it is.

    ZeRO 3 is left out: its traffic is not estimated, and all parameters of a looped model are gathered at once.
    """
    recipe = resolved.value

    def options(path: str, wanted: Sequence[int]) -> Sequence[int]:
        section, name = path.split(".")
        given = getattr(getattr(recipe, section), name)
        return [given] if resolved.source((section, name)) == SOURCE and given else wanted

    policies = list(RECOMPUTE_POLICIES)
    if resolved.source(("train", "recompute")) == SOURCE and recipe.train.recompute != "auto":
        policies = [recipe.train.recompute]
    for pipe in options("mesh.pipe", divisors(processes)):
        for tensor in options("mesh.tensor", divisors(processes)):
            if processes % (pipe * tensor):
                continue
            data = processes // (pipe * tensor)
            if data not in options("mesh.data", [data]):
                continue
            share = recipe.train.batch // data if recipe.train.batch % data == 0 else 1
            for micro in options("train.micro", divisors(share)):
                for group in options("mesh.group", _groups(share // micro, pipe)):
                    for zero in options("mesh.zero", (1, 2)):
                        for policy in policies:
                            yield LayoutChoice(data, pipe, tensor, zero, group, micro, policy)


def divisors(n: int) -> list[int]:
    """All divisors of n, smallest first."""
    return [d for d in range(1, n + 1) if n % d == 0]


def _groups(pieces: int, pipe: int) -> list[int]:
    """Sizes of groups of a process's micro-batches; `[0]` where there is none, which a rule refuses."""
    largest = 1 if pipe == 1 else max(pipe + 2, LARGEST_GROUP)
    return [group for group in divisors(max(1, pieces)) if pipe <= group <= largest] or [0]


class Layouts:
    """Makes layouts of choices, on CPUs or GPUs, and says why it cannot. Choices with as many stages share the cuts of the stack."""

    def __init__(self, resolved: Resolved[Recipe], data_layout: DataLayout, gpu: bool = False) -> None:
        self.resolved, self.data_layout, self.gpu = resolved, data_layout, gpu
        self._of_stages: dict[int, Layout] = {}

    def of(self, choice: LayoutChoice) -> Layout | tuple[str, str]:
        """The layout, or what refuses it: the name of a rule and its reason."""
        applied = choice.applied(self.resolved)
        job = applied.value
        for rule in RULES:
            if rule.broken(job):
                return rule.name, reason(rule, job)
        try:
            complete(applied, self.data_layout.manifest)
            batch = resolve_batch(job, choice.data * choice.pipe * choice.tensor)
        except LayoutError as error:
            return "batch", error.reason
        except UserError as error:
            return "data", str(error)
        if choice.pipe not in self._of_stages:
            self._of_stages[choice.pipe] = resolve_layout(job, self.data_layout.windows, batch, self.data_layout.sizes)
        return dataclasses.replace(self._of_stages[choice.pipe], job=without_auto(job, self.gpu), batch=batch)
