"""The CUDA graphs of a run: functions of named tensors, captured once, checked against eager execution, then replayed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from types import MappingProxyType

import torch
from torch import Tensor, nn

from sleeptrain.execute.gradients import Accumulate, StaticGradAccumulator, accumulate
from sleeptrain.execute.graph_capture import GraphRecorder, NamedOutputs, aliased_parameters

_LOG = logging.getLogger("sleeptrain")
CHECKS = 2
"""The number of first uses of a graph that are compared with eager execution; two, so that input values change."""
MAX_GRAPHS = 64
"""The number of graphs that a run captures at most; later functions run eagerly. (A recipe needs about a dozen.)"""
ROUNDING = {torch.bfloat16: 1e-2, torch.float32: 1e-4, torch.float64: 1e-10}
"""The relative difference between replay and eager execution that is always allowed, by the model's dtype: the order in which
attention sums is not fixed."""
SPREAD = 4.0
"""How many times the difference between two eager executions is allowed, too: a gradient that nearly cancels keeps few digits."""

ELSEWHERE = "another process of the tensor axis"

NamedTensors = Mapping[str, Tensor]
GradsByWeight = Mapping[Tensor, Tensor]
"""Accumulated gradients by weight."""
Function = Callable[[NamedTensors], NamedOutputs]
"""A function of tensors by name; anything else that it depends on must be the same in every call."""


@dataclass
class _GraphedFunction:
    """A captured function with its static input and output buffers."""

    inputs: dict[str, Tensor]
    outputs: NamedOutputs
    launch: Callable[[], None]
    checks: int = 0

    def replay(self, inputs: NamedTensors) -> NamedOutputs:
        """Copy the inputs into the static buffers, replay, and return copies of the outputs."""
        _copy([inputs[name] for name in self.inputs], list(self.inputs.values()))
        self.launch()
        outputs = {name: torch.empty_like(tensor) for name, tensor in self.outputs.items()}
        _copy(list(self.outputs.values()), list(outputs.values()))
        return outputs


@dataclass(frozen=True)
class _Difference:
    """How far a tensor is from the expected one, in the 2-norm."""

    distance: float
    rounding: float
    """The distance that is always allowed."""

    def small(self, spread: float = 0.0) -> bool:
        """Whether it is within rounding, or within what two eager executions that are `spread` apart explain."""
        return self.distance <= max(self.rounding, SPREAD * spread) and self.distance < inf


class GraphCache:
    """The graphs of a run by everything that they depend on besides tensors, and the gradients that they accumulate.

    Graphs add weight gradients to static buffers themselves; outside of a graph each addition would be one more launch.
    """

    def __init__(
        self, recorder: GraphRecorder, grad_buffers: Mapping[Tensor, Tensor] = MappingProxyType({}),
        accumulate: Accumulate = accumulate, anywhere: Callable[[bool], bool] = bool,
    ) -> None:  # fmt: skip
        """
        grad_buffers, accumulate  as in `GradAccumulator`
        anywhere                  whether something holds on any process that takes part in the collectives of graphs: a collective
                                  over them. All of them refuse a graph that one refuses, and make the same checks
        """
        self.recorder, self.grads = recorder, StaticGradAccumulator()
        self._grad_buffers, self._accumulate, self._anywhere = grad_buffers, accumulate, anywhere
        self.replayed = 0
        """The number of replays whose results were used."""
        self._graphs: dict[Hashable, _GraphedFunction | None] = {}
        """None: the function runs eagerly."""
        self._buffers: dict[Hashable, Tensor] = {}
        self._model = nn.Module()
        self._addresses: list[int] = []

    @property
    def refused(self) -> int:
        """The number of functions that run eagerly because their graph could not be used."""
        return sum(graph is None for graph in self._graphs.values())

    def of(self, model: nn.Module, partial: Iterable[Tensor] = ()) -> GraphCache:
        """This cache, for a step of `model`; drops all graphs if the addresses of its weights have changed.

        `partial`: as in `GradAccumulator`.
        """
        if model is not self._model:
            self.grads = StaticGradAccumulator(self._grad_buffers, partial, self._accumulate)
        addresses = [weight.data_ptr() for weight in model.parameters()]
        if model is not self._model or addresses != self._addresses:
            self._graphs.clear()
            self._model, self._addresses = model, addresses
        return self

    def __call__(self, kind: Hashable, function: Function, inputs: NamedTensors, *, adds: bool = False) -> NamedOutputs:
        """`function(inputs)`, by replay where possible.

        `kind` identifies everything besides tensors that the function depends on, and is shown in messages. `adds`: the
        function adds to the accumulated gradients.
        """
        key = (kind, *((name, tensor.shape, tensor.dtype) for name, tensor in inputs.items()))
        if key in self._graphs:
            graph = self._graphs[key]
            if graph is None:
                return function(inputs)
            if graph.checks == CHECKS:
                self.replayed += 1
                return graph.replay(inputs)
        return self._run_checked(key, function, inputs, adds)

    def _run_checked(
        self, key: tuple[Hashable, ...], function: Function, inputs: NamedTensors, adds: bool
    ) -> NamedOutputs:
        """Run eagerly, and compare a replay with the result; captures the graph first if there is none."""
        place = self._place_of_snapshots() if adds else None
        before = self.grads.snapshot(place) if adds else {}
        expected = function(inputs)
        after = self.grads.snapshot(place) if adds else {}

        def differences(run: Callable[[], NamedOutputs]) -> dict[str, _Difference]:
            """Those of a repetition, by what differs."""
            if adds:
                self.grads.restore(before)
            outputs = run()
            gradients = self._gradient_differences(before, after) if adds else {}
            return {name: self._difference(outputs[name], expected[name]) for name in expected} | gradients

        if key not in self._graphs:
            self._graphs[key] = self._capture(key, function, inputs)
        graph = self._graphs[key]
        if graph is not None:
            graph.checks += 1
            wrong = {name: one for name, one in differences(lambda: graph.replay(inputs)).items() if not one.small()}
            if refuse := self._anywhere(bool(wrong)):
                spread = differences(lambda: function(inputs))
                wrong = {name: one for name, one in wrong.items() if not one.small(spread[name].distance)}
                refuse = self._anywhere(bool(wrong))
            if refuse:
                self._graphs[key] = None
                self._warn(key, f"its replay differs from eager execution in {next(iter(wrong), ELSEWHERE)}")
        if adds:
            self.grads.restore(after)
        return expected

    def _capture(self, key: tuple[Hashable, ...], function: Function, inputs: NamedTensors) -> _GraphedFunction | None:
        if len(self._graphs) >= MAX_GRAPHS:
            self._warn(key, f"the limit of {MAX_GRAPHS} graphs is reached")
            return None
        # Inputs with the same name and shape share a buffer, because graphs are replayed one at a time.
        static = {name: self._buffer(name, tensor) for name, tensor in inputs.items()}
        _copy(list(inputs.values()), list(static.values()))
        graph, reason = None, ELSEWHERE
        try:
            with aliased_parameters(self._model) as originals, self.grads.aliased_as(originals):
                graph = _GraphedFunction(static, *self.recorder.capture(lambda: function(static)))
        except RuntimeError as error:
            reason = str(error)
        if self._anywhere(graph is None):
            self._warn(key, f"its capture failed: {reason}")
            return None
        _LOG.info("captured a CUDA graph of %s", key[0])
        return graph

    def _buffer(self, name: str, like: Tensor) -> Tensor:
        key = (name, like.shape, like.dtype)
        if key not in self._buffers:
            self._buffers[key] = torch.empty_like(like)
        return self._buffers[key]

    def _place_of_snapshots(self) -> torch.device | None:
        """The device where it has room for copies of all sums beside what a capture needs, else None: host memory, which is slow."""
        sums = list(self.grads.by_weight.values())
        if not sums or sums[0].device.type != "cuda":
            return None
        free, _ = torch.cuda.mem_get_info(sums[0].device)
        return sums[0].device if free > 4 * sum(total.nbytes for total in sums) else None

    def _gradient_differences(self, before: GradsByWeight, after: GradsByWeight) -> dict[str, _Difference]:
        """How the accumulated gradients differ from `after`, relative to what was added to `before`."""
        found = {}
        names: dict[Tensor, str] = {weight: name for name, weight in self._model.named_parameters()}
        for weight, total in self.grads.by_weight.items():
            expected = after[weight].to(total.device)
            change = expected - before[weight].to(total.device) if weight in before else expected
            # The sum is also rounded to the last digit of its own size.
            slack = torch.finfo(total.dtype).eps * _norm(expected)
            allowed = self._rounding * _norm(change) + slack
            found[f"the gradient of {names[weight]}"] = _Difference(_distance(total, expected), allowed)
        return found

    def _difference(self, found: Tensor, expected: Tensor) -> _Difference:
        if not expected.is_floating_point():
            return _Difference(0.0 if torch.equal(found, expected) else inf, 0.0)
        return _Difference(_distance(found, expected), self._rounding * _norm(expected))

    @property
    def _rounding(self) -> float:
        return ROUNDING[next(self._model.parameters()).dtype]

    def _warn(self, key: tuple[Hashable, ...], reason: str) -> None:
        _LOG.warning("train.cuda_graphs: %s runs without a CUDA graph from now on: %s", key[0], reason)


def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    """Copy tensors, with one launch per dtype."""
    by_dtype: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for source, target in zip(sources, targets, strict=True):
        if source.numel():
            into, out = by_dtype.setdefault(source.dtype, ([], []))
            into.append(target)
            out.append(source.contiguous() if target.is_contiguous() else source)
    for into, out in by_dtype.values():
        torch._foreach_copy_(into, out)


def _distance(found: Tensor, expected: Tensor) -> float:
    """The 2-norm of the difference of the finite elements; inf unless the same elements are finite."""
    same = torch.equal(found.isfinite(), expected.isfinite())
    return _norm((found - expected).where(expected.isfinite(), 0)) if same else inf


def _norm(tensor: Tensor) -> float:
    """The 2-norm of the finite elements, in float64."""
    finite = tensor.detach().where(tensor.isfinite(), 0)
    return float(torch.linalg.vector_norm(finite, dtype=torch.float64))
