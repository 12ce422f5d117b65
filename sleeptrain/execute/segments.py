"""The pieces of a pass that are differentiated one by one: entry, blocks, head; each a function of tensors alone."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sleeptrain.model.language import LanguageModel
from sleeptrain.model.state import Leaf, State
from sleeptrain.program import Boundary, Pass

Entry = Literal["embed", "norm"] | None
"""What a pass does before its first block: embed tokens, norm features, or nothing."""
SegmentOutputs = tuple[Tensor, dict[str, Tensor]]
"""Features, and the leaves of the state that changed."""


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch: `tokens`, `targets` [rows, length] (-100: not scored), the state that it starts from, and which
    tokens are real (None: all are)."""

    tokens: Tensor
    targets: Tensor
    state: State
    valid: Tensor | None = None

    def window(self, op: Pass) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens, targets and real tokens of the window of a pass."""
        part = slice(op.start, op.stop)
        return self.tokens[:, part], self.targets[:, part], None if self.valid is None else self.valid[:, part]


@dataclass(frozen=True)
class Segment:
    """A piece of a pass. `run(h, leaves)` reads features (None at the entry of tokens) and its own leaves of the state."""

    run: Callable[[Tensor | None, Mapping[str, Tensor]], SegmentOutputs]
    weights: tuple[nn.Parameter, ...]
    leaves: tuple[str, ...] = ()


@dataclass(frozen=True)
class SegmentGraph:
    """A unit that was run with a graph, from inputs that were cut off from what made them."""

    unit: Segment
    h: Tensor | None
    leaves: dict[str, Tensor]
    out: Tensor
    changed: dict[str, Tensor]

    def saved(self) -> list[Tensor]:
        """All tensors that the graph keeps for backward, inputs included."""
        found = [tensor for tensor in [self.h, *self.leaves.values()] if tensor is not None]
        functions, seen = [t.grad_fn for t in [self.out, *self.changed.values()]], set()
        while functions:
            function = functions.pop()
            if function is None or function in seen:
                continue
            seen.add(function)
            functions += [following for following, _ in function.next_functions]
            kept = [getattr(function, name) for name in dir(function) if name.startswith("_saved_")]
            kept += getattr(function, "saved_tensors", ())
            found += [tensor for tensor in kept if isinstance(tensor, Tensor)]
        return found


def block_segments(
    model: LanguageModel, op: Pass, blocks: tuple[int, int], span: int, rows: MicroBatch, entry: Entry,
    position0: Tensor | None = None,
) -> list[Segment]:  # fmt: skip
    """The units of a pass over `blocks`: its entry, where there is anything to compute, then one for every block.

    `position0` [] is the rotary position of the first token where that is not always the one of `op`.
    """
    tokens, _, valid = rows.window(op)
    units = []
    if entry == "embed":
        units.append(Segment(lambda h, _: (model.embed(tokens), {}), _weights(model.embed)))
    elif entry == "norm":
        units.append(norm_segment(model))
    spec = rows.state.spec
    for block in list(model.layers)[blocks[0] : blocks[1]]:
        own = [leaf for leaf in spec if leaf.layer == block.layer and leaf.kind != "live"]

        def run(
            h: Tensor | None, leaves: Mapping[str, Tensor], block: nn.Module = block, own: list = own
        ) -> SegmentOutputs:
            return block(h, State(tuple(own), leaves), op, span, valid, position0)

        units.append(Segment(run, _weights(block), tuple(leaf.name for leaf in own)))
    return units


def loss_segment(model: LanguageModel, op: Pass, rows: MicroBatch, known: Tensor | None = None) -> Segment:
    """Final norm, head and loss of a pass: nats [rows, tokens of the window] from its features; `known` if it has run."""
    _, targets, _ = rows.window(op)
    weights = [*_weights(model.norm), *_weights(model.embed if model.head is None else model.head)]

    def run(h: Tensor | None, _: Mapping[str, Tensor]) -> SegmentOutputs:
        assert h is not None
        return model.nll(h, targets, known), {}

    return Segment(run, tuple(weights))


def norm_segment(model: LanguageModel) -> Segment:
    """The final norm alone, where passes read features through it."""

    def run(h: Tensor | None, _: Mapping[str, Tensor]) -> SegmentOutputs:
        assert h is not None
        return model.norm(h), {}

    return Segment(run, _weights(model.norm))


def forward_no_grad(unit: Segment, h: Tensor | None, state: Mapping[str, Tensor]) -> SegmentOutputs:
    """Run a unit without a graph."""
    with torch.no_grad():
        return unit.run(h, {name: state[name] for name in unit.leaves})


def forward_with_grad(
    unit: Segment, h: Tensor | None, state: Mapping[str, Tensor], *, wants: Container[str] = (), wants_h: bool = True
) -> SegmentGraph:
    """Run a unit with a graph of its own. `wants`: leaves whose gradient is wanted; `wants_h`: that of the features is."""
    h = None if h is None else _input(h, wants_h)
    leaves = {name: _input(state[name], name in wants) for name in unit.leaves}
    with torch.enable_grad():
        out, changed = unit.run(h, leaves)
    return SegmentGraph(unit, h, leaves, out, changed)


def vjp(
    node: SegmentGraph, d_out: Tensor | None, d_changed: Mapping[str, Tensor]
) -> tuple[Tensor | None, dict[str, Tensor], list[tuple[nn.Parameter, Tensor]]]:
    """From the adjoints of a unit's outputs (missing: zero) those of its features, its leaves and its weights."""
    found: list[tuple[Tensor, Tensor]] = [(node.out, d_out)] if d_out is not None else []
    found += [(value, d_changed[name]) for name, value in node.changed.items() if name in d_changed]
    found = [(value, adjoint) for value, adjoint in found if value.requires_grad]
    if not found:
        return None, {}, []
    names = [name for name, leaf in node.leaves.items() if leaf.requires_grad]
    weights = [w for w in node.unit.weights if w.requires_grad]
    inputs = [node.leaves[name] for name in names]
    inputs += [node.h] if node.h is not None and node.h.requires_grad else []
    gradients = torch.autograd.grad(
        [value for value, _ in found], [*inputs, *weights], [adjoint for _, adjoint in found], allow_unused=True
    )
    d_leaves = {name: g for name, g in zip(names, gradients, strict=False) if g is not None}
    d_h = gradients[len(names)] if len(inputs) > len(names) else None
    return d_h, d_leaves, [(w, g) for w, g in zip(weights, gradients[len(inputs) :], strict=True) if g is not None]


def vjp_eviction(
    spec: tuple[Leaf, ...], shapes: Mapping[str, torch.Size], boundary: Boundary, adjoints: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The adjoints of a state before it was evicted, from those after it. Eviction is linear: the shapes are enough."""
    # Tensors of these shapes, without memory.
    stand_ins = {leaf.name: torch.zeros(()).expand(shapes[leaf.name]) for leaf in spec}
    for name, adjoint in adjoints.items():
        stand_ins[name] = adjoint.new_zeros(()).expand(shapes[name]).requires_grad_()
    with torch.enable_grad():
        left = State(spec, stand_ins).evict(boundary)
    names = [name for name in adjoints if left[name].requires_grad]
    if not names:
        return {}
    gradients = torch.autograd.grad(
        [left[name] for name in names], [stand_ins[name] for name in names], [adjoints[name] for name in names]
    )
    return dict(zip(names, gradients, strict=True))


def _weights(module: nn.Module) -> tuple[nn.Parameter, ...]:
    return tuple(module.parameters())


def _input(tensor: Tensor, wanted: bool) -> Tensor:
    return tensor.detach().requires_grad_(tensor.is_floating_point() and wanted)
