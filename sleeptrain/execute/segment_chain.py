"""A chain of segments, the work of one stage in one pass: forward, recomputation with graphs, backward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from sleeptrain.execute.gradients import GradAccumulator, add_optional
from sleeptrain.execute.segments import Segment, SegmentGraph, forward_no_grad, forward_with_grad, vjp


@dataclass(frozen=True)
class ChainInputs:
    """The inputs of a chain, and which of them need a gradient."""

    h: Tensor | None
    """The features that enter it; None where it embeds tokens."""
    state: Mapping[str, Tensor]
    grad_h: bool
    grad_leaves: frozenset[str]


@dataclass(frozen=True)
class ChainOutputs:
    """The results of the forward pass of a chain."""

    out: Tensor
    changed: dict[str, Tensor]
    """The leaves of the state that it wrote."""
    block_inputs: list[Tensor]
    """The features entering the last segments, as many as were asked for."""
    graphs: list[SegmentGraph]
    """The graphs of all segments, if they were asked for."""


def run(
    segments: Sequence[Segment], inputs: ChainInputs, *, with_grad: bool = False, block_inputs: int = 0
) -> ChainOutputs:
    """Run a chain. `with_grad` returns the graphs of all segments; otherwise `block_inputs` is the number of last segments
    whose input features are returned."""
    if with_grad:
        graphs = chain_with_grad(segments, inputs)
        changed = {name: value.detach() for graph in graphs for name, value in graph.changed.items()}
        return ChainOutputs(graphs[-1].out.detach(), changed, [], graphs)
    h, changed, saved = inputs.h, {}, []
    for k, segment in enumerate(segments):
        if h is not None and k >= len(segments) - block_inputs:
            saved.append(h)
        h, new = forward_no_grad(segment, h, inputs.state)
        changed |= new
    assert h is not None
    return ChainOutputs(h, changed, saved, [])


def chain_with_grad(segments: Sequence[Segment], inputs: ChainInputs) -> list[SegmentGraph]:
    """The graphs of all segments, each detached from the one before."""
    h, graphs = inputs.h, list[SegmentGraph]()
    for segment in segments:
        graphs.append(_graph(segment, h, inputs, first=not graphs))
        h = graphs[-1].out.detach()
    return graphs


def graphs_for_backward(
    segments: Sequence[Segment], inputs: ChainInputs, block_inputs: Sequence[Tensor]
) -> list[SegmentGraph]:
    """The recomputed graphs with which backward begins: that of the last segment if its input was saved, else all."""
    if block_inputs:
        return [_graph(segments[-1], block_inputs[-1], inputs, first=False)]
    return chain_with_grad(segments, inputs)


def backward(
    segments: Sequence[Segment], inputs: ChainInputs, block_inputs: Sequence[Tensor], graphs: list[SegmentGraph],
    d_out: Tensor | None, d_changed: Mapping[str, Tensor], grads: GradAccumulator,
) -> tuple[Tensor | None, dict[str, Tensor]]:  # fmt: skip
    """Backward through a chain: the gradients of its features and leaves from those of its outputs (missing: zero).

    Weight gradients are added to `grads`. `graphs`, as `graphs_for_backward` or `run` returned them, is emptied.
    """
    d_h, d_leaves = d_out, dict[str, Tensor]()
    for graph in _reversed_graphs(segments, inputs, block_inputs, graphs):
        d_h, d_read, d_weights = vjp(graph, d_h, d_changed)
        d_leaves |= d_read
        for weight, gradient in d_weights:
            grads.add(weight, gradient)
    return d_h, d_leaves


def backward_one(graph: SegmentGraph, d_out: Tensor | None, grads: GradAccumulator) -> Tensor | None:
    """Backward through one segment without state: the gradient of its features."""
    d_h, _, d_weights = vjp(graph, d_out, {})
    for weight, gradient in d_weights:
        grads.add(weight, gradient)
    return d_h


def backward_received(
    received: Sequence[Tensor], norm: Segment | None, out: Tensor, grads: GradAccumulator
) -> Tensor | None:
    """The gradient of a chain's output features from those that other stages sent.

    The other stages read the features through `norm`, if it is given.
    """
    total: Tensor | None = None
    for gradient in received:
        total = add_optional(total, gradient)
    return total if norm is None else backward_one(forward_with_grad(norm, out.detach(), {}), total, grads)


def _reversed_graphs(
    segments: Sequence[Segment], inputs: ChainInputs, block_inputs: Sequence[Tensor], graphs: list[SegmentGraph]
) -> Iterator[SegmentGraph]:
    """The graphs of all segments, last first. Only one graph is alive at a time where block inputs were saved."""
    while graphs:
        yield graphs.pop()
    for k in range(2, len(block_inputs) + 1):
        yield _graph(segments[-k], block_inputs[-k], inputs, first=False)
    rest = chain_with_grad(segments[: len(segments) - len(block_inputs)], inputs) if block_inputs else []
    while rest:
        yield rest.pop()


def _graph(segment: Segment, h: Tensor | None, inputs: ChainInputs, first: bool) -> SegmentGraph:
    return forward_with_grad(
        segment, h, inputs.state, grad_leaves=inputs.grad_leaves, grad_h=inputs.grad_h or not first
    )
