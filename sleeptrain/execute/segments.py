"""Segments: the pieces of a pass with a graph of their own - embedding, blocks, final norm, loss - and their VJPs."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sleeptrain.model.language import LanguageModel
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.model.state import Leaf, State
from sleeptrain.model.token_mask import TokenMask
from sleeptrain.program import Boundary, Pass

Entry = Literal["embed", "norm", "gated"] | None
"""What runs before the first block of a pass: the embedding of tokens, the final norm of features, the embedding of tokens
plus gated features, or nothing."""
SegmentOutputs = tuple[Tensor, dict[str, Tensor]]
"""Features, and the leaves of the state that changed."""


@dataclass(frozen=True)
class Segment:
    """A pure function of features and state leaves."""

    run: Callable[[Tensor | None, Mapping[str, Tensor]], SegmentOutputs]
    """(features, leaves by name) -> outputs; the features are None for the embedding."""
    weights: tuple[nn.Parameter, ...]
    leaves: tuple[str, ...] = ()
    """The leaves of the state that it reads."""


@dataclass(frozen=True)
class SegmentGraph:
    """The autograd graph of one segment, whose inputs are detached from what computed them."""

    segment: Segment
    h: Tensor | None
    leaves: dict[str, Tensor]
    out: Tensor
    changed: dict[str, Tensor]

    def held(self) -> list[Tensor]:
        """All tensors that exist because of the graph: what it saves, and its output."""
        return [*self.saved(), self.out]

    def saved(self) -> list[Tensor]:
        """All tensors that the graph saves for backward, including the inputs."""
        tensors = [tensor for tensor in [self.h, *self.leaves.values()] if tensor is not None]
        functions, seen = [t.grad_fn for t in [self.out, *self.changed.values()]], set()
        while functions:
            function = functions.pop()
            if function is None or function in seen:
                continue
            seen.add(function)
            functions += [following for following, _ in function.next_functions]
            saved = [getattr(function, name) for name in dir(function) if name.startswith("_saved_")]
            saved += getattr(function, "saved_tensors", ())
            tensors += [tensor for tensor in saved if isinstance(tensor, Tensor)]
        return tensors


@dataclass(frozen=True)
class PassTokens:
    """The tokens of a pass over a window."""

    tokens: Tensor
    """[rows, time] int64."""
    mask: TokenMask
    position0: Tensor | None = None
    """[], an int64 tensor that replaces `Pass.position0` as the rotary position of the first token."""

    @classmethod
    def of(cls, batch: MicroBatch, op: Pass) -> PassTokens:
        """Those of a micro-batch."""
        tokens, _, mask = batch.window(op)
        return cls(tokens, mask)


def block_segments(
    model: LanguageModel, op: Pass, blocks: tuple[int, int], span: int, spec: tuple[Leaf, ...], read: PassTokens, entry: Entry
) -> list[Segment]:  # fmt: skip
    """The segments of a pass over blocks[0]..blocks[1]-1: its entry, unless that is None, then one per block.

    `spec` declares the leaves of the state.
    """
    tokens = read.tokens
    segments = []
    if entry == "embed":
        segments.append(Segment(lambda h, _: (model.embed(tokens), {}), _weights(model.embed)))
    elif entry == "norm":
        segments.append(norm_segment(model))
    elif entry == "gated":
        segments.append(gated_segment(model, tokens))
    for block in list(model.layers)[blocks[0] : blocks[1]]:
        block_spec = tuple(leaf for leaf in spec if leaf.layer == block.layer and leaf.kind != "live")

        def run(
            h: Tensor | None,
            leaves: Mapping[str, Tensor],
            block: nn.Module = block,
            spec: tuple[Leaf, ...] = block_spec,
        ) -> SegmentOutputs:
            return block(h, State(spec, leaves), op, span, read.mask, read.position0)

        segments.append(Segment(run, _weights(block), tuple(leaf.name for leaf in block_spec)))
    return segments


def loss_segment(model: LanguageModel, op: Pass, batch: MicroBatch, known: Tensor | None = None) -> Segment:
    """Final norm, head and loss of a pass: features -> losses in nats [rows, tokens of the window].

    `known`: the losses of an earlier run of the segment; then only the gradient is computed.
    """
    _, targets, _ = batch.window(op)
    weights = [*_weights(model.norm), *_weights(model.embed if model.head is None else model.head)]

    def run(h: Tensor | None, _: Mapping[str, Tensor]) -> SegmentOutputs:
        assert h is not None
        return model.nll(h, targets, known), {}

    return Segment(run, tuple(weights))


def norm_segment(model: LanguageModel) -> Segment:
    """The final norm, which passes apply to the features they read under `feedback: normed`."""

    def run(h: Tensor | None, _: Mapping[str, Tensor]) -> SegmentOutputs:
        assert h is not None
        return model.norm(h), {}

    return Segment(run, _weights(model.norm))


def gated_segment(model: LanguageModel, tokens: Tensor) -> Segment:
    """What passes read under `feedback: gated`: the embeddings of the tokens plus a learned multiple of the features."""
    feedback = model.feedback
    assert feedback is not None

    def run(h: Tensor | None, _: Mapping[str, Tensor]) -> SegmentOutputs:
        return feedback(model.embed(tokens), h), {}

    return Segment(run, (*_weights(model.embed), *_weights(feedback)))


def forward_no_grad(segment: Segment, h: Tensor | None, state: Mapping[str, Tensor]) -> SegmentOutputs:
    """Run a segment without a graph."""
    with torch.no_grad():
        return segment.run(h, {name: state[name] for name in segment.leaves})


def forward_with_grad(
    segment: Segment, h: Tensor | None, state: Mapping[str, Tensor], *, grad_leaves: Container[str] = (), grad_h: bool = True
) -> SegmentGraph:  # fmt: skip
    """Run a segment and return its graph. Backward will give gradients of `grad_leaves` and, if `grad_h`, of features."""
    h = None if h is None else _graph_input(h, grad_h)
    leaves = {name: _graph_input(state[name], name in grad_leaves) for name in segment.leaves}
    with torch.enable_grad():
        out, changed = segment.run(h, leaves)
    return SegmentGraph(segment, h, leaves, out, changed)


def vjp(
    graph: SegmentGraph, d_out: Tensor | None, d_changed: Mapping[str, Tensor]
) -> tuple[Tensor | None, dict[str, Tensor], list[tuple[nn.Parameter, Tensor]]]:
    """The vector-Jacobian product of a segment: gradients of its features, leaves and weights from those of its outputs.

    A missing output gradient means zero; gradients that are zero are None or missing.
    """
    outputs: list[tuple[Tensor, Tensor]] = [(graph.out, d_out)] if d_out is not None else []
    outputs += [(value, d_changed[name]) for name, value in graph.changed.items() if name in d_changed]
    outputs = [(value, gradient) for value, gradient in outputs if value.requires_grad]
    if not outputs:
        return None, {}, []
    names = [name for name, leaf in graph.leaves.items() if leaf.requires_grad]
    weights = [w for w in graph.segment.weights if w.requires_grad]
    inputs = [graph.leaves[name] for name in names]
    inputs += [graph.h] if graph.h is not None and graph.h.requires_grad else []
    if not inputs and not weights:  # a frozen segment that reads nothing with a gradient
        return None, {}, []
    gradients = torch.autograd.grad(
        [value for value, _ in outputs], [*inputs, *weights], [gradient for _, gradient in outputs], allow_unused=True
    )
    d_leaves = {name: g for name, g in zip(names, gradients, strict=False) if g is not None}
    d_h = gradients[len(names)] if len(inputs) > len(names) else None
    return d_h, d_leaves, [(w, g) for w, g in zip(weights, gradients[len(inputs) :], strict=True) if g is not None]


def vjp_eviction(
    spec: tuple[Leaf, ...], shapes: Mapping[str, torch.Size], boundary: Boundary, d_evicted: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The gradients of a state before eviction from those after it. Eviction is linear: shapes replace the values."""
    # Expanded scalars have these shapes and take no memory.
    stand_ins = {leaf.name: torch.zeros(()).expand(shapes[leaf.name]) for leaf in spec}
    for name, gradient in d_evicted.items():
        stand_ins[name] = gradient.new_zeros(()).expand(shapes[name]).requires_grad_()
    with torch.enable_grad():
        evicted = State(spec, stand_ins).evict(boundary)
    names = [name for name in d_evicted if evicted[name].requires_grad]
    if not names:
        return {}
    gradients = torch.autograd.grad(
        [evicted[name] for name in names], [stand_ins[name] for name in names], [d_evicted[name] for name in names]
    )
    return dict(zip(names, gradients, strict=True))


def _weights(module: nn.Module) -> tuple[nn.Parameter, ...]:
    return tuple(module.parameters())


def _graph_input(tensor: Tensor, needs_grad: bool) -> Tensor:
    return tensor.detach().requires_grad_(tensor.is_floating_point() and needs_grad)
