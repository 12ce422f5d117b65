"""Checks of the fast-weight kernels against the float64 reference."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from sleeptrain.cli.checks.check import CheckResult

TOLERANCE = 1e-4
"""Bound on the relative error of a float32 kernel against the float64 reference."""


def check_kernels() -> Iterator[CheckResult]:
    """The chunked kernel against the float64 reference: output, final state and all gradients. On a GPU also the fused kernels."""
    import torch

    inputs = _inputs()
    expected = _run_kernel([tensor.double() for tensor in inputs], "reference")
    actual = _run_kernel(inputs, "chunked")
    errors = {
        name: ((actual[name].double() - value).abs().max() / value.abs().max()).item()
        for name, value in expected.items()
    }
    worst = max(errors, key=errors.__getitem__)
    finite = all(torch.isfinite(tensor).all() for tensor in actual.values())
    good = finite and errors[worst] < TOLERANCE
    detail = f"largest relative error {errors[worst]:.1e}, in {worst}"
    yield CheckResult("kernels", "ok" if good else "failed", detail, "" if good else "report it with the CPU model")
    if torch.cuda.is_available():
        yield from _check_fused(torch.device("cuda", torch.cuda.current_device()))


def _check_fused(device: Any) -> Iterator[CheckResult]:
    """Every entry of the kernel table for this GPU and Triton, at 129 tokens (two chunks and one token), two value heads per key head."""
    import torch

    from sleep_kernels import assembler, verdicts
    from sleep_kernels.comparison import Shape
    from sleep_kernels.self_test import architecture, entries, self_test

    table, ptxas = entries(device), assembler.in_use(architecture(device))
    known = [verdicts.verdict(verdicts.VerdictKey.of(entry, ptxas[1])) if ptxas else None for entry in table]
    yield _assembler(ptxas, known)
    if not table:
        detail = f"no entry for {architecture(device)} and this Triton"
        yield CheckResult(
            "fused kernels", "missing", detail, "training uses the plain torch kernels on this GPU", False
        )
    for entry, right in zip(table, known, strict=True):
        (result,) = self_test(device, [Shape(2, 129, 4, 8, entry["d"], getattr(torch, entry["dtype"]))])
        name = f"fused kernels, {entry['dtype']}, d {entry['d']}"
        if not result.ok:
            advice = "report it; train.kernels=chunked does not use fused kernels"
            yield CheckResult(name, "failed", str(result), advice, False)
        elif not right:
            advice = "python -m sleep_kernels.self_test --write"
            yield CheckResult(name, "missing", f"{result}; not used until verified", advice, False)
        else:
            yield CheckResult(name, "ok", str(result), needed=False)


def _assembler(ptxas: tuple[str, str] | None, known: list[bool | None]) -> CheckResult:
    """The ptxas that Triton uses: its version, where it comes from, and of how many kernels it is verified."""
    from sleep_kernels import assembler

    if ptxas is None:
        advice = f"unset {assembler.VARIABLE}, or install triton again"
        return CheckResult("assembler", "failed", "Triton finds no ptxas", advice, False)
    path, version = ptxas
    named = os.environ.get(assembler.VARIABLE)
    if path == assembler.packaged():
        whose = "of the extra gpu"
    elif named == path:
        whose = f"set by {assembler.VARIABLE}"
    else:  # Triton passes over a path without a file
        whose = f"Triton's own, since {assembler.VARIABLE} = {named} is no ptxas" if named else "Triton's own"
    right = sum(each is True for each in known)
    detail = f"ptxas {version}, {whose}: {path}; verified for {right} of {len(known)} entries of the kernel table"
    if right == len(known):
        return CheckResult("assembler", "ok", detail, needed=False)
    way_out = assembler.way_out(version)
    advice = f"{way_out}{'then ' if way_out else ''}python -m sleep_kernels.self_test --write"
    return CheckResult("assembler", "missing", detail, advice, False)


def _inputs() -> list[Any]:
    """q, k, v, g, beta and the initial state: 100 tokens, two value heads per key head, float32."""
    import torch
    from torch.nn.functional import logsigmoid, normalize

    generator = torch.Generator().manual_seed(0)
    batch, time, key_heads, value_heads, d = 2, 100, 1, 2, 16

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return [
        normalize(normal(batch, time, key_heads, d), dim=-1),
        normalize(normal(batch, time, key_heads, d), dim=-1),
        normal(batch, time, value_heads, d),
        logsigmoid(normal(batch, time, value_heads) + 3),
        normal(batch, time, value_heads).sigmoid(),
        normal(batch, value_heads, d, d),
    ]


def _run_kernel(tensors: list[Any], backend: str) -> dict[str, Any]:
    """Output, final state, and all gradients of a loss that weighs every element of output and state differently."""
    from sleep_kernels import gated_delta_rule

    inputs = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    o, state = gated_delta_rule(*inputs, backend=backend)
    (o.cos().sum() + state.cos().sum()).backward()
    names = ("q", "k", "v", "g", "beta", "initial_state")
    gradients = {f"the gradient of {name}": tensor.grad for name, tensor in zip(names, inputs, strict=True)}
    return {"o": o.detach(), "the final state": state.detach(), **gradients}
