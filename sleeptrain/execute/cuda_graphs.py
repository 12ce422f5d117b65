"""Work that is recorded once and replayed: functions of named tensors at fixed addresses, on a GPU as CUDA graphs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sleeptrain.execute.gradients import StaticGradAccumulator
from sleeptrain.execute.graph_capture import GraphRecorder, NamedOutputs, aliased_parameters

_LOG = logging.getLogger("sleeptrain")
CHECKS = 2
"""So many first uses of a recording are held against the function itself: two, so that values are seen to change."""
MAX_GRAPHS = 64
"""Recordings of a run; what comes after them is not recorded. (A recipe has about a dozen.)"""
ROUNDING = {torch.bfloat16: 1e-2, torch.float32: 1e-4, torch.float64: 1e-10}
"""How far a replay may be from the function, relative, by the model's type: attention adds up in no fixed order."""

NamedTensors = Mapping[str, Tensor]
GradsByWeight = Mapping[Tensor, Tensor]
"""Sums of gradients by weight."""
Function = Callable[[NamedTensors], NamedOutputs]
"""Of tensors by name; whatever else it depends on is the same in every call."""


@dataclass
class _GraphedFunction:
    """A function, its inputs and outputs at addresses of their own."""

    inputs: dict[str, Tensor]
    outputs: NamedOutputs
    again: Callable[[], None]
    checks: int = 0

    def replay(self, inputs: NamedTensors) -> NamedOutputs:
        """What the function makes of other inputs."""
        _copy([inputs[name] for name in self.inputs], list(self.inputs.values()))
        self.again()
        made = {name: torch.empty_like(tensor) for name, tensor in self.outputs.items()}
        _copy(list(self.outputs.values()), list(made.values()))
        return made


class GraphCache:
    """The recordings of a run, by all that they depend on besides tensors; and the sums that they add gradients to.

    Gradients of weights are added inside of a recording, to sums that stay where they are: outside, each would be a launch.
    """

    def __init__(self, recorder: GraphRecorder, sum_dtype: torch.dtype) -> None:
        self.recorder, self.sums = recorder, StaticGradAccumulator(sum_dtype)
        self.replayed = 0
        """How often a recording was replayed and trusted."""
        self._recordings: dict[Hashable, _GraphedFunction | None] = {}
        """None: it cannot be used."""
        self._places: dict[Hashable, Tensor] = {}
        self._model = nn.Module()
        self._addresses: list[int] = []

    @property
    def refused(self) -> int:
        """How many recordings cannot be used."""
        return sum(recording is None for recording in self._recordings.values())

    def of(self, model: nn.Module) -> GraphCache:
        """These recordings, for a step of a model: those that were made when its weights stood elsewhere are forgotten."""
        addresses = [weight.data_ptr() for weight in model.parameters()]
        if model is not self._model or addresses != self._addresses:
            self._recordings.clear()
            self._model, self._addresses = model, addresses
        return self

    def __call__(self, kind: Hashable, function: Function, inputs: NamedTensors, *, adds: bool = False) -> NamedOutputs:
        """What `function` makes of `inputs`, replayed if it can be. `kind` says all that the function depends on besides;
        it is shown where something goes wrong. `adds`: the function adds to the sums."""
        key = (kind, *((name, tensor.shape, tensor.dtype) for name, tensor in inputs.items()))
        if key in self._recordings:
            recording = self._recordings[key]
            if recording is None:
                return function(inputs)
            if recording.checks == CHECKS:
                self.replayed += 1
                return recording.replay(inputs)
        return self._watched(key, function, inputs, adds)

    def _watched(self, key: tuple[Hashable, ...], function: Function, inputs: NamedTensors, adds: bool) -> NamedOutputs:
        """What the function itself makes of them; its recording, made here if there is none, is held against that."""
        before = self.sums.saved() if adds else {}
        wanted = function(inputs)
        after = self.sums.saved() if adds else {}
        if key not in self._recordings:
            self._recordings[key] = self._record(key, function, inputs)
        recording = self._recordings[key]
        if recording is not None:
            if adds:
                self.sums.load(before)
            found = recording.replay(inputs)
            recording.checks += 1
            if (apart := self._apart(found, wanted)) or (adds and (apart := self._sums_apart(before, after))):
                self._recordings[key] = None
                self._say(key, f"its recording missed {apart}")
        if adds:
            self.sums.load(after)
        return wanted

    def _record(self, key: tuple[Hashable, ...], function: Function, inputs: NamedTensors) -> _GraphedFunction | None:
        if len(self._recordings) >= MAX_GRAPHS:
            self._say(key, f"there are {MAX_GRAPHS} recordings already")
            return None
        # Inputs of one name and shape share a place: recordings are replayed one after another.
        fixed = {name: self._place(name, tensor) for name, tensor in inputs.items()}
        _copy(list(inputs.values()), list(fixed.values()))
        try:
            with aliased_parameters(self._model) as originals, self.sums.aliased_as(originals):
                made, again = self.recorder.record(lambda: function(fixed))
        except RuntimeError as error:
            self._say(key, f"it cannot be recorded: {error}")
            return None
        _LOG.info("recorded %s", key[0])
        return _GraphedFunction(fixed, made, again)

    def _place(self, name: str, like: Tensor) -> Tensor:
        key = (name, like.shape, like.dtype)
        if key not in self._places:
            self._places[key] = torch.empty_like(like)
        return self._places[key]

    def _apart(self, found: NamedTensors, wanted: NamedTensors) -> str | None:
        """The first output of a recording that is not what was wanted."""
        return next((name for name in wanted if not _close(found[name], wanted[name], self._rounding)), None)

    def _sums_apart(self, before: GradsByWeight, after: GradsByWeight) -> str | None:
        """Whether the sums did not go from what they were before to what they should be, in words."""
        for weight, total in self.sums.totals.items():
            there = after[weight].to(total.device)
            step = there - before[weight].to(total.device) if weight in before else there
            # A sum also rounds at the last digit of what was there.
            slack = torch.finfo(total.dtype).eps * _norm(there)
            if not _near(total, there, self._rounding * _norm(step) + slack):
                return f"the gradient of a weight of shape {list(weight.shape)}"
        return None

    @property
    def _rounding(self) -> float:
        return ROUNDING[next(self._model.parameters()).dtype]

    def _say(self, key: tuple[Hashable, ...], why: str) -> None:
        _LOG.warning("train.cuda_graphs: %s is launched kernel by kernel from here on: %s", key[0], why)


def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    """Copy tensors, those of a type in one launch."""
    by_type: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for source, target in zip(sources, targets, strict=True):
        if source.numel():
            mine = by_type.setdefault(source.dtype, ([], []))
            mine[0].append(target)
            mine[1].append(source.contiguous() if target.is_contiguous() else source)
    for into, out in by_type.values():
        torch._foreach_copy_(into, out)


def _close(found: Tensor, wanted: Tensor, rounding: float) -> bool:
    if not wanted.is_floating_point():
        return torch.equal(found, wanted)
    return _near(found, wanted, rounding * _norm(wanted))


def _near(found: Tensor, wanted: Tensor, distance: float) -> bool:
    """Whether what is finite is no further apart, and what is not finite is so in both."""
    same = torch.equal(found.isfinite(), wanted.isfinite())
    return same and _norm((found - wanted).where(wanted.isfinite(), 0)) <= distance


def _norm(tensor: Tensor) -> float:
    """Of what is finite."""
    finite = tensor.detach().where(tensor.isfinite(), 0)
    return float(torch.linalg.vector_norm(finite, dtype=torch.float64))
