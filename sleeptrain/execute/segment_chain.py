"""A chain of units, the work of one stage in one pass: run it, run it again with its graphs, go back through them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from sleeptrain.execute.gradients import GradAccumulator, add_optional
from sleeptrain.execute.segments import Segment, SegmentGraph, forward_no_grad, forward_with_grad, vjp


@dataclass(frozen=True)
class ChainInputs:
    """What a chain reads, and of what of it gradients are wanted."""

    h: Tensor | None
    """The features that enter it; None where it reads tokens."""
    state: Mapping[str, Tensor]
    wants_h: bool
    wants: frozenset[str]


@dataclass(frozen=True)
class ChainOutputs:
    """A chain that was run."""

    out: Tensor
    changed: dict[str, Tensor]
    """The leaves of the state that it wrote."""
    between: list[Tensor]
    """The features that entered its blocks, but for the first one; if asked for."""
    nodes: list[SegmentGraph]
    """Its units with their graphs; if asked for."""


def run(units: Sequence[Segment], inputs: ChainInputs, *, graphs: bool = False, between: int = 0) -> ChainOutputs:
    """Run a chain; keep the graphs of all units, or the features that enter the last `between` units."""
    if graphs:
        nodes = chain_with_grad(units, inputs)
        changed = {name: value.detach() for node in nodes for name, value in node.changed.items()}
        return ChainOutputs(nodes[-1].out.detach(), changed, [], nodes)
    h, changed, kept = inputs.h, {}, []
    for k, unit in enumerate(units):
        if h is not None and k >= len(units) - between:
            kept.append(h)
        h, new = forward_no_grad(unit, h, inputs.state)
        changed |= new
    assert h is not None
    return ChainOutputs(h, changed, kept, [])


def chain_with_grad(units: Sequence[Segment], inputs: ChainInputs) -> list[SegmentGraph]:
    """All units with graphs of their own, each cut off from the one before."""
    h, nodes = inputs.h, list[SegmentGraph]()
    for unit in units:
        nodes.append(_node(unit, h, inputs, first=not nodes))
        h = nodes[-1].out.detach()
    return nodes


def graphs_for_backward(units: Sequence[Segment], inputs: ChainInputs, between: Sequence[Tensor]) -> list[SegmentGraph]:
    """The units with which backward begins, with their graphs: all, or the last one where its input was kept."""
    return [_node(units[-1], between[-1], inputs, first=False)] if between else chain_with_grad(units, inputs)


def backward(
    units: Sequence[Segment], inputs: ChainInputs, between: Sequence[Tensor], nodes: list[SegmentGraph], d_out: Tensor | None,
    d_changed: Mapping[str, Tensor], sums: GradAccumulator,
) -> tuple[Tensor | None, dict[str, Tensor]]:  # fmt: skip
    """Back through a chain: from the adjoints of its features and leaves (missing: zero) to those of what it read."""
    d_h, d_leaves = d_out, dict[str, Tensor]()
    for node in _last_first(units, inputs, between, nodes):
        d_h, found, gradients = vjp(node, d_h, d_changed)
        d_leaves |= found
        for weight, gradient in gradients:
            sums.add(weight, gradient)
    return d_h, d_leaves


def backward_one(node: SegmentGraph, d_out: Tensor | None, sums: GradAccumulator) -> Tensor | None:
    """Back through one unit that reads features alone: the adjoint of what it read."""
    d_h, _, gradients = vjp(node, d_out, {})
    for weight, gradient in gradients:
        sums.add(weight, gradient)
    return d_h


def backward_received(
    sent: Sequence[Tensor], norm: Segment | None, out: Tensor, sums: GradAccumulator
) -> Tensor | None:
    """The adjoint of the features leaving a chain from what other stages sent back, who read them through `norm` if given."""
    total: Tensor | None = None
    for d in sent:
        total = add_optional(total, d)
    return total if norm is None else backward_one(forward_with_grad(norm, out.detach(), {}), total, sums)


def _last_first(
    units: Sequence[Segment], inputs: ChainInputs, between: Sequence[Tensor], nodes: list[SegmentGraph]
) -> Iterator[SegmentGraph]:
    """The units with their graphs, last first; each is forgotten here when the next is asked for."""
    while nodes:
        yield nodes.pop()
    for k in range(2, len(between) + 1):
        yield _node(units[-k], between[-k], inputs, first=False)
    rest = chain_with_grad(units[: len(units) - len(between)], inputs) if between else []
    while rest:
        yield rest.pop()


def _node(unit: Segment, h: Tensor | None, inputs: ChainInputs, first: bool) -> SegmentGraph:
    return forward_with_grad(unit, h, inputs.state, wants=inputs.wants, wants_h=inputs.wants_h or not first)
