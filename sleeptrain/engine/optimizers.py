"""Which parameter is updated how, and the optimizer that does it."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from sleeptrain.engine.config import Optim
from sleeptrain.engine.muon import Muon

Kind = Literal["matrix", "other", "plain"]


def kind(name: str, parameter: torch.Tensor) -> Kind:
    """`matrix`: a hidden matrix, Muon's; `other`: AdamW with weight decay; `plain`: AdamW without.

    Hidden matrices are the 2-D weights inside `layers.`, except the b and a projections of Gated DeltaNet, whose few rows
    are one gate per head rather than a map between feature spaces.
    """
    *owners, last = name.split(".")
    if parameter.ndim < 2 or last in ("A_log", "dt_bias") or any(part.startswith("conv") for part in (*owners, last)):
        return "plain"
    if owners[:1] == ["layers"] and parameter.ndim == 2 and owners[-1] not in ("a", "b"):
        return "matrix"
    return "other"


STAND_IN = "stand_in"
"""The name of a parameter that means nothing."""


def fill_groups(model: nn.Module, device: torch.device) -> None:
    """Give a stage of a pipeline that has no parameter of the kind `other` one that means nothing.

    DeepSpeed (0.19.8) sums the norm of the gradients over stages group by group: a stage that has fewer groups than the
    others (attention alone, between the first and the last) would leave them waiting for ever.
    """
    if not any(kind(name, parameter) == "other" for name, parameter in model.named_parameters()):
        model.register_parameter(STAND_IN, nn.Parameter(torch.zeros(1, 1, device=device)))


def groups(model: nn.Module, optim: Optim) -> list[dict[str, Any]]:
    """Parameter groups of what is trainable, in the model's order; each holds its full rate as `peak`, and its `names`."""
    found: dict[Kind, list[tuple[str, nn.Parameter]]] = {"matrix": [], "other": [], "plain": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found[kind(name, parameter)].append((name, parameter))
    rest = optim.lr if optim.adam_lr is None else optim.adam_lr
    made = []
    for which, members in found.items():
        if members:
            rate = optim.lr if which == "matrix" else rest
            made.append(
                {
                    "params": [parameter for _, parameter in members],
                    "names": [name for name, _ in members],
                    "name": which,
                    "muon": which == "matrix" and optim.name == "muon",
                    "lr": rate,
                    "peak": rate,
                    "weight_decay": 0.0 if which == "plain" else optim.weight_decay,
                }
            )
    return made


def optimizer(model: nn.Module, optim: Optim) -> torch.optim.Optimizer:
    """torch's AdamW, or Muon with AdamW for the rest; never one that DeepSpeed would compile on first use."""
    # torch's own "foreach" path is as fast on flat partitions, of which there are three, and exists on every device.
    adam = {"betas": tuple(optim.betas), "eps": optim.eps}
    made = groups(model, optim)
    if optim.name == "adamw":
        return torch.optim.AdamW(made, **adam)  # type: ignore[arg-type]
    return Muon(made, momentum=optim.momentum, ns_dtype=getattr(torch, optim.ns_dtype), **adam)
