"""Parameter groups, and the optimizer over them: AdamW, or Muon with AdamW."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from sleeptrain.engine.config import Optim
from sleeptrain.engine.muon import Muon

Kind = Literal["matrix", "other", "plain"]
"""Parameter group: hidden matrices, parameters with weight decay, parameters without."""


def kind(name: str, parameter: torch.Tensor) -> Kind:
    """The group of a parameter. `matrix`: Muon, or AdamW with decay; `other`: AdamW with decay; `plain`: AdamW without decay.

    Hidden matrices are the 2-D weights inside `layers.`, except the b and a projections of Gated DeltaNet: these have one row
    per head, a gate, and do not map between feature spaces. They, the embedding, norms and convolutions are not decayed: decay
    would pull gates towards one half, and rare tokens' embeddings, whose gradients are mostly zero, towards zero.
    """
    *owners, last = name.split(".")
    if parameter.ndim < 2 or last in ("A_log", "dt_bias") or any(part.startswith("conv") for part in (*owners, last)):
        return "plain"
    if owners[:1] == ["embed"] or owners[-1:] in (["a"], ["b"]):
        return "plain"
    return "matrix" if owners[:1] == ["layers"] and parameter.ndim == 2 else "other"


PLACEHOLDER = "placeholder"
"""The name of the parameter that `add_placeholder_parameter` adds."""


def add_placeholder_parameter(model: nn.Module, device: torch.device) -> None:
    """Add a parameter of one zero to a pipeline stage that has no parameter of the kind `other`.

    DeepSpeed (0.19.8) all-reduces the gradient norm over stages once per parameter group. A stage with fewer groups than the
    others, as all are that do not hold an untied head, would make them wait forever.
    """
    if not any(kind(name, parameter) == "other" for name, parameter in model.named_parameters()):
        model.register_parameter(PLACEHOLDER, nn.Parameter(torch.zeros(1, 1, device=device)))


def param_groups(model: nn.Module, optim: Optim) -> list[dict[str, Any]]:
    """Parameter groups of the trainable parameters, in the model's order.

    Besides torch's keys a group has `peak`, its peak learning rate, `names` of its parameters, its `name` (a Kind) and `muon`.
    """
    members: dict[Kind, list[tuple[str, nn.Parameter]]] = {"matrix": [], "other": [], "plain": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            members[kind(name, parameter)].append((name, parameter))
    adam_lr = optim.lr if optim.adam_lr is None else optim.adam_lr
    groups = []
    for which, named in members.items():
        if named:
            peak = optim.lr if which == "matrix" else adam_lr
            groups.append(
                {
                    "params": [parameter for _, parameter in named],
                    "names": [name for name, _ in named],
                    "name": which,
                    "muon": which == "matrix" and optim.name == "muon",
                    "lr": peak,
                    "peak": peak,
                    "weight_decay": 0.0 if which == "plain" else optim.weight_decay,
                }
            )
    return groups


def make_optimizer(model: nn.Module, optim: Optim) -> torch.optim.Optimizer:
    """torch's AdamW, or Muon for hidden matrices with AdamW for the rest."""
    # Not DeepSpeed's, which compile an extension on first use. torch's foreach implementation is as fast on ZeRO's flat
    # partitions, of which there are three, and exists on every device.
    adam = {"betas": tuple(optim.betas), "eps": optim.eps}
    groups = param_groups(model, optim)
    if optim.name == "adamw":
        return torch.optim.AdamW(groups, **adam)  # type: ignore[arg-type]
    return Muon(groups, momentum=optim.momentum, ns_dtype=getattr(torch, optim.ns_dtype), **adam)
