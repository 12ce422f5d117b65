"""A chain of segments, the work of one stage in one pass: forward, recomputation with graphs, backward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from sleeptrain.execute.gradients import GradAccumulator, add_optional
from sleeptrain.execute.products import Products, record, replay
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
class SavedBlocks:
    """What is saved inside a chain between forward and backward."""

    inputs: list[Tensor] = field(default_factory=list)
    """The features entering the last segments; those of the segments before are recomputed."""
    products: list[Products] = field(default_factory=list)
    """The outputs of the products of the last segments; those of the segments before are recomputed."""


NOTHING_SAVED = SavedBlocks()


@dataclass(frozen=True)
class ChainOutputs:
    """The results of the forward pass of a chain."""

    out: Tensor
    changed: dict[str, Tensor]
    """The leaves of the state that it wrote."""
    saved: SavedBlocks
    """As much as was asked for."""
    graphs: list[SegmentGraph]
    """The graphs of all segments, if they were asked for."""


def run(
    segments: Sequence[Segment], inputs: ChainInputs, *, with_grad: bool = False, block_inputs: int = 0, products: int = 0
) -> ChainOutputs:  # fmt: skip
    """Run a chain. `with_grad` returns the graphs of all segments; otherwise `block_inputs` and `products` are the numbers of last
    segments whose input features, and outputs of products, are returned."""
    if with_grad:
        graphs = chain_with_grad(segments, inputs)
        changed = {name: value.detach() for graph in graphs for name, value in graph.changed.items()}
        return ChainOutputs(graphs[-1].out.detach(), changed, NOTHING_SAVED, graphs)
    h, changed, saved = inputs.h, {}, SavedBlocks()
    for k, segment in enumerate(segments):
        if h is not None and k >= len(segments) - block_inputs:
            saved.inputs.append(h)
        if k >= len(segments) - products:
            # With a graph, so that the operators are those of backward; it is dropped here.
            graph, recorded = record(partial(_graph, segment, h, inputs, k == 0))
            saved.products.append(recorded)
            h, new = graph.out.detach(), {name: value.detach() for name, value in graph.changed.items()}
        else:
            h, new = forward_no_grad(segment, h, inputs.state)
        changed |= new
    assert h is not None
    return ChainOutputs(h, changed, saved, [])


def chain_with_grad(
    segments: Sequence[Segment], inputs: ChainInputs, products: Sequence[Products] = ()
) -> list[SegmentGraph]:
    """The graphs of all segments, each detached from the one before; `products` are those of the last segments."""
    h, graphs, first = inputs.h, list[SegmentGraph](), len(segments) - len(products)
    for k, segment in enumerate(segments):
        graphs.append(_graph(segment, h, inputs, k == 0, products[k - first] if k >= first else None))
        h = graphs[-1].out.detach()
    return graphs


def graphs_for_backward(segments: Sequence[Segment], inputs: ChainInputs, saved: SavedBlocks) -> list[SegmentGraph]:
    """The recomputed graphs with which backward begins: that of the last segment if its input was saved, else all."""
    if saved.inputs:
        return [_graph_of_saved(segments, inputs, saved, 1)]
    return chain_with_grad(segments, inputs, saved.products)


def backward(
    segments: Sequence[Segment], inputs: ChainInputs, saved: SavedBlocks, graphs: list[SegmentGraph],
    d_out: Tensor | None, d_changed: Mapping[str, Tensor], grads: GradAccumulator,
) -> tuple[Tensor | None, dict[str, Tensor]]:  # fmt: skip
    """Backward through a chain: the gradients of its features and leaves from those of its outputs (missing: zero).

    Weight gradients are added to `grads`. `graphs`, as `graphs_for_backward` or `run` returned them, is emptied.
    """
    d_h, d_leaves = d_out, dict[str, Tensor]()
    for graph in _reversed_graphs(segments, inputs, saved, graphs):
        d_h, d_read, d_weights = vjp(graph, d_h, d_changed)
        d_leaves |= d_read
        grads.add(d_weights)
    return d_h, d_leaves


def backward_one(graph: SegmentGraph, d_out: Tensor | None, grads: GradAccumulator) -> Tensor | None:
    """Backward through one segment without state: the gradient of its features."""
    d_h, _, d_weights = vjp(graph, d_out, {})
    grads.add(d_weights)
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
    segments: Sequence[Segment], inputs: ChainInputs, saved: SavedBlocks, graphs: list[SegmentGraph]
) -> Iterator[SegmentGraph]:
    """The graphs of all segments, last first. Only one graph is alive at a time where block inputs were saved."""
    while graphs:
        yield graphs.pop()
    count = len(saved.inputs)
    for k in range(2, count + 1):
        yield _graph_of_saved(segments, inputs, saved, k)
    before = saved.products[: len(saved.products) - count]
    rest = chain_with_grad(segments[: len(segments) - count], inputs, before) if count else []
    while rest:
        yield rest.pop()


def _graph_of_saved(segments: Sequence[Segment], inputs: ChainInputs, saved: SavedBlocks, k: int) -> SegmentGraph:
    """The graph of the k-th segment from the end, whose input was saved."""
    return _graph(segments[-k], saved.inputs[-k], inputs, False, saved.products[-k] if saved.products else None)


def _graph(
    segment: Segment, h: Tensor | None, inputs: ChainInputs, first: bool, products: Products | None = None
) -> SegmentGraph:
    """The graph of a segment; with `products` in place of those that it would compute."""
    grad_h = inputs.grad_h or not first
    run = partial(forward_with_grad, segment, h, inputs.state, grad_leaves=inputs.grad_leaves, grad_h=grad_h)
    return run() if products is None else replay(run, products)
