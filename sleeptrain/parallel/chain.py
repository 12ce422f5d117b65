"""A chain of units, the work of one stage in one pass: run it, run it again with its graphs, go back through them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from sleeptrain.parallel.sums import Sums, plus
from sleeptrain.parallel.units import Node, Unit, build, evaluate, pull


@dataclass(frozen=True)
class Inputs:
    """What a chain reads, and of what of it gradients are wanted."""

    h: Tensor | None
    """The features that enter it; None where it reads tokens."""
    state: Mapping[str, Tensor]
    wants_h: bool
    wants: frozenset[str]


@dataclass(frozen=True)
class Ran:
    """A chain that was run."""

    out: Tensor
    changed: dict[str, Tensor]
    """The leaves of the state that it wrote."""
    between: list[Tensor]
    """The features that entered its blocks, but for the first one; if asked for."""
    nodes: list[Node]
    """Its units with their graphs; if asked for."""


def run(units: Sequence[Unit], inputs: Inputs, *, graphs: bool = False, between: int = 0) -> Ran:
    """Run a chain; keep the graphs of all units, or the features that enter the last `between` units."""
    if graphs:
        nodes = chained(units, inputs)
        changed = {name: value.detach() for node in nodes for name, value in node.changed.items()}
        return Ran(nodes[-1].out.detach(), changed, [], nodes)
    h, changed, kept = inputs.h, {}, []
    for k, unit in enumerate(units):
        if h is not None and k >= len(units) - between:
            kept.append(h)
        h, new = evaluate(unit, h, inputs.state)
        changed |= new
    assert h is not None
    return Ran(h, changed, kept, [])


def chained(units: Sequence[Unit], inputs: Inputs) -> list[Node]:
    """All units with graphs of their own, each cut off from the one before."""
    h, nodes = inputs.h, list[Node]()
    for unit in units:
        nodes.append(_node(unit, h, inputs, first=not nodes))
        h = nodes[-1].out.detach()
    return nodes


def last_of(units: Sequence[Unit], inputs: Inputs, between: Sequence[Tensor]) -> list[Node]:
    """The units with which backward begins, with their graphs: all, or the last one where its input was kept."""
    return [_node(units[-1], between[-1], inputs, first=False)] if between else chained(units, inputs)


def back(
    units: Sequence[Unit], inputs: Inputs, between: Sequence[Tensor], nodes: list[Node], d_out: Tensor | None,
    d_changed: Mapping[str, Tensor], sums: Sums,
) -> tuple[Tensor | None, dict[str, Tensor]]:  # fmt: skip
    """Back through a chain: from the adjoints of its features and leaves (missing: zero) to those of what it read."""
    d_h, d_leaves = d_out, dict[str, Tensor]()
    for node in _last_first(units, inputs, between, nodes):
        d_h, found, gradients = pull(node, d_h, d_changed)
        d_leaves |= found
        for weight, gradient in gradients:
            sums.add(weight, gradient)
    return d_h, d_leaves


def through(node: Node, d_out: Tensor | None, sums: Sums) -> Tensor | None:
    """Back through one unit that reads features alone: the adjoint of what it read."""
    d_h, _, gradients = pull(node, d_out, {})
    for weight, gradient in gradients:
        sums.add(weight, gradient)
    return d_h


def returned(sent: Sequence[Tensor], norm: Unit | None, out: Tensor, sums: Sums) -> Tensor | None:
    """The adjoint of the features leaving a chain from what other stages sent back, who read them through `norm` if given."""
    total: Tensor | None = None
    for d in sent:
        total = plus(total, d)
    return total if norm is None else through(build(norm, out.detach(), {}), total, sums)


def _last_first(units: Sequence[Unit], inputs: Inputs, between: Sequence[Tensor], nodes: list[Node]) -> Iterator[Node]:
    """The units with their graphs, last first; each is forgotten here when the next is asked for."""
    while nodes:
        yield nodes.pop()
    for k in range(2, len(between) + 1):
        yield _node(units[-k], between[-k], inputs, first=False)
    rest = chained(units[: len(units) - len(between)], inputs) if between else []
    while rest:
        yield rest.pop()


def _node(unit: Unit, h: Tensor | None, inputs: Inputs, first: bool) -> Node:
    return build(unit, h, inputs.state, wants=inputs.wants, wants_h=inputs.wants_h or not first)
