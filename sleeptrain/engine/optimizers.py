"""Parameter groups, and the optimizer over them: AdamW, or Muon with AdamW."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from sleeptrain.engine.config import Optim
from sleeptrain.engine.muon import Muon

Kind = Literal["matrix", "plain"]
"""Parameter group: hidden matrices, which weight decay acts on, and all other parameters."""


def kind(name: str, parameter: torch.Tensor) -> Kind:
    """The group of a parameter. `matrix`: Muon, or AdamW with decay; `plain`: AdamW without decay.

    Hidden matrices are the 2-D weights inside `layers.`, except the b and a projections of Gated DeltaNet: these have one row
    per head, a gate, and do not map between feature spaces. They, embedding, head, norms and convolutions are not decayed: decay
    would pull gates towards one half, and the embeddings of rare tokens, whose gradients are mostly zero, towards zero.

    Every pipeline stage has both groups, since every block has both kinds. DeepSpeed (0.19.8) needs that: it all-reduces the
    gradient norm over stages once per group, and a stage with fewer groups would make the others wait forever.
    """
    *owners, last = name.split(".")
    if owners[:1] != ["layers"] or owners[-1] in ("a", "b") or any(part.startswith("conv") for part in (*owners, last)):
        return "plain"
    return "matrix" if parameter.ndim == 2 else "plain"


def param_groups(model: nn.Module, optim: Optim) -> list[dict[str, Any]]:
    """Parameter groups of the trainable parameters, in the model's order.

    Besides torch's keys a group has `peak`, its peak learning rate, `names` of its parameters, its `name` (a Kind) and `muon`.
    """
    members: dict[Kind, list[tuple[str, nn.Parameter]]] = {"matrix": [], "plain": []}
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
