"""One matrix product for the linear layers that read the same input: their weights side by side in memory as one matrix.

The layers keep separate parameters, which checkpoints name and Muon orthogonalises one by one. Where their weights follow one
another in one storage, a view of it is the matrix of the joint product, and nothing is copied: blocks place them so
(`place_side_by_side`), and so does DeepSpeed at ZeRO 1 and 2, whose flat buffers keep the order of the parameters. Whether it is
so is seen in every call (`joint_weights`), since a parameter may move at any time; the layers then have a product each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Layers = Sequence[nn.Module]
"""Linear layers that read the same input."""


class JointWeights(NamedTuple):
    """The joint matrices of a block, each None where its layers have a product each."""

    mixer: tuple[Tensor | None, ...] = (None, None)
    """In the order of the mixer's `joint_layers`."""
    mlp: Tensor | None = None
    """Of gate and up."""


SEPARATE = JointWeights()


def joint_weights(groups: Sequence[Layers]) -> list[Tensor | None]:
    """For each group of linear layers their weights as one matrix [sum of their outputs, inputs] without a copy, in autograd's graph.

    None where the weights do not follow one another in one storage, are not all trained or all frozen, or where a layer has a bias
    or a hook, or is not torch's: of tensor parallelism by megatron-core, or of ZeRO 3, which gathers weights in hooks. None as
    well in a function that torch.compile traces, which cannot ask for storages: joint weights are inputs of it.
    """
    if torch.compiler.is_compiling():
        return [None] * len(groups)
    return [_joint_weight(_side_by_side(layers)) for layers in groups]


def _joint_weight(weights: list[Tensor] | None) -> Tensor | None:
    if not weights:
        return None
    if torch.is_grad_enabled() and weights[0].requires_grad:
        # One function for each group: hooks of weights are not called where nothing reads the product of their group.
        return _Joint.apply(*weights)
    return _matrix(weights)


def place_side_by_side(layers: Layers) -> None:
    """Move the weights of linear layers into one storage, one after another. The parameters are the same objects.

    Nothing happens where they are there already, and where they could not have a joint product all the same.
    """
    weights = _joinable(layers)
    if not weights or are_side_by_side(layers):
        return
    if len({(weight.dtype, weight.device, weight.shape[1:]) for weight in weights}) > 1:
        return
    joint = torch.cat([weight.detach() for weight in weights])
    for weight, part in zip(weights, joint.split([weight.shape[0] for weight in weights]), strict=True):
        weight.data = part


def are_side_by_side(layers: Layers) -> bool:
    """Whether the weights of linear layers follow one another in one storage, and the layers can have a joint product."""
    return _side_by_side(layers) is not None


class _Joint(torch.autograd.Function):
    """Matrices that lie side by side, as one."""

    @staticmethod
    def forward(ctx: Any, *weights: Tensor) -> Tensor:
        ctx.rows = [weight.shape[0] for weight in weights]
        return _matrix(weights)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient.split(ctx.rows)


def _matrix(weights: Sequence[Tensor]) -> Tensor:
    # `data`: the result is no view of the first weight to autograd, which would have to follow changes of it.
    first, rows = weights[0].data, sum(weight.shape[0] for weight in weights)
    return first.as_strided((rows, first.shape[1]), (first.shape[1], 1))


def _joinable(layers: Layers) -> list[Tensor] | None:
    """The weights of layers that could have a joint product; None if they could not."""
    weights: list[Tensor] = []
    for layer in layers:
        if type(layer) is not nn.Linear or layer._forward_pre_hooks or layer._forward_hooks:
            return None
        if layer._backward_pre_hooks or layer._backward_hooks:
            return None
        parameters = layer._parameters  # this runs for every use of a block: attributes of modules are slow
        weight = parameters["weight"]
        if weight is None or weight.ndim != 2 or parameters["bias"] is not None:
            return None
        weights.append(weight)
    return weights


def _side_by_side(layers: Layers) -> list[Tensor] | None:
    """The weights of layers that have a joint product; None if they have separate ones."""
    weights = _joinable(layers)
    if not weights:
        return None
    first = weights[0]
    storage, position, columns = first.untyped_storage()._cdata, first.storage_offset(), first.shape[1]
    dtype, trained = first.dtype, first.requires_grad
    for weight in weights:
        if (
            weight.storage_offset() != position
            or weight.untyped_storage()._cdata != storage
            or weight.dtype != dtype
            or weight.requires_grad != trained
            or weight.shape[1] != columns
            or not weight.is_contiguous()
        ):
            return None
        position += weight.numel()
    return weights
