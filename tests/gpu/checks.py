"""Checks of a device against a computation on the CPU; `make test-gpu` runs them on a GPU, the ordinary tests on the CPU."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from sleep_kernels.comparison import Shape, compare
from sleeptrain.execute.autograd import CheckpointedExecutor, ExecutorOptions
from sleeptrain.execute.cuda_graphs import ROUNDING, GraphCache
from sleeptrain.execute.graph_capture import CudaGraphRecorder
from sleeptrain.model.attention import Attention, KVCache, apply_rotary, rotary_cos_sin
from sleeptrain.model.config import AttentionConfig
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.model.token_mask import TokenMask
from sleeptrain.program import compile
from sleeptrain.schedule import RECOMPUTE_POLICIES
from tests.execute.eager_replay import CountingReplay
from tests.model import toy
from tests.model.test_sleep import CASES

EXECUTED = ("context", "sliding, range, every", "gated")
"""Cases of the executor: hard and sliding eviction, a looped range, weights of the feedback."""
SPAN = 5


def by_executor(
    case: str, policy: str, device: torch.device, dtype: torch.dtype, cache: GraphCache | None = None, steps: int = 1
) -> list[dict[str, Tensor]]:
    """Losses and gradients of some steps of the executor on a device, one step with other tokens after another, on the CPU."""
    (sleep, layout, passes), found = CASES[case], []
    model = toy.model(dtype=dtype, gated=CASES[case][0].gated).to(device)
    program = compile(sleep, layout, len(model.layers), passes)
    for seed in range(steps):
        tokens, targets = (tensor.to(device) for tensor in toy.batch(layout, rows=3, seed=seed))
        valid = torch.ones(tokens.shape, dtype=torch.bool, device=device)
        valid[0, :2] = False
        targets[~valid] = -100
        starts = {number: first.to(device) for number, first in toy.starts(layout, valid.cpu(), rows=3).items()}
        batch = MicroBatch(tokens, targets, model.zero_state(sleep, 3), valid, starts=starts)
        options = ExecutorOptions(graph_cache=cache)
        (result,) = CheckpointedExecutor(model, [batch], program, sleep, policy, options=options).run()  # type: ignore[arg-type]
        model.zero_grad()
        result.nll.square().sum().backward()
        grads = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
        found.append({"nll": result.nll.detach().cpu(), **grads})
    return found


def check_executor(device: torch.device, case: str) -> None:
    """Losses and gradients are those of plain autograd on the CPU in float64, with the same bits under every policy."""
    sleep, layout, passes = CASES[case]
    model = toy.model(gated=sleep.gated)
    tokens, targets = toy.batch(layout, rows=3, seed=0)
    valid = torch.ones(tokens.shape, dtype=torch.bool)
    valid[0, :2] = False
    targets[~valid] = -100
    starts = dict(toy.starts(layout, valid, rows=3))
    plain = toy.forward(copy.deepcopy(model), sleep, layout, tokens, targets, passes, valid=valid, starts=starts)
    found = {policy: by_executor(case, policy, device, torch.float64)[0] for policy in RECOMPUTE_POLICIES}
    torch.testing.assert_close(found["none"]["nll"], plain.nll.detach(), rtol=1e-9, atol=1e-9)
    on_cpu = by_executor(case, "none", torch.device("cpu"), torch.float64)[0]
    for policy, tensors in found.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, on_cpu[name], rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
            assert torch.equal(tensor, found["none"][name]), (policy, name)


def check_graphs(device: torch.device, case: str, policy: str, dtype: torch.dtype) -> None:
    """Steps that replay CUDA graphs equal eager ones within rounding, and every pass is replayed."""
    cache = GraphCache(CudaGraphRecorder() if device.type == "cuda" else CountingReplay())
    eager = by_executor(case, policy, device, dtype, steps=5)
    replayed = by_executor(case, policy, device, dtype, cache, steps=5)
    assert cache.replayed > 0 and cache.refused == 0
    for ours, theirs in zip(replayed, eager, strict=True):
        for name, tensor in theirs.items():
            apart = (ours[name] - tensor).double().norm() / tensor.double().norm().clamp_min(1e-30)
            assert apart <= ROUNDING[dtype], (name, float(apart))


def check_kernels(device: torch.device, shape: Shape, backend: str) -> None:
    """A backend's operators and their gradients are within their bounds of the float64 reference, and repeatable."""
    for seed in (0, 1):
        report = compare(device, shape, backend, seed)
        assert report.ok, str(report)


def check_attention(device: torch.device, dtype: torch.dtype, bound: float) -> None:
    """Attention with a cache, padding and a span equals a softmax written out in float64 on the CPU, and so do its gradients."""
    torch.manual_seed(0)
    config = AttentionConfig(heads=4, kv_heads=2, head_dim=16, rotary=0.5)
    module = Attention(24, config, 1e-6)
    torch.nn.init.normal_(module.q_norm.weight, std=0.3)
    x, seen = torch.randn(2, 7, 24), torch.tensor([[True] * 3, [False, True, True]])
    key, value = torch.randn(2, 3, 2, 16), torch.randn(2, 3, 2, 16)
    inner = copy.deepcopy(module).to(device, dtype)
    inputs = [tensor.to(device, dtype).requires_grad_() for tensor in (x, key, value)]
    cache = KVCache(inputs[1], inputs[2], seen.to(device))
    out, _ = inner(inputs[0], cache, 3, SPAN, TokenMask())
    wide = copy.deepcopy(inner).to("cpu", torch.float64)
    exact = [tensor.detach().to("cpu", torch.float64).requires_grad_() for tensor in inputs]
    expected = dense_attention(wide, *exact, seen)
    weights = torch.randn(expected.shape, dtype=torch.float64)
    found = [out, *torch.autograd.grad(out, [*inputs, *inner.parameters()], weights.to(out))]
    wanted = [expected, *torch.autograd.grad(expected, [*exact, *wide.parameters()], weights)]
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours.detach().cpu().double() - theirs).norm() <= bound * theirs.norm()


def dense_attention(module: Attention, x: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
    """The output of an attention layer behind a cache of 3 tokens, head by head and query by query."""
    config, (batch, time, _) = module.config, x.shape
    d, cached = config.head_dim, key.shape[1]
    cos, sin = rotary_cos_sin(cached, time, config, x)
    q = apply_rotary(module.q_norm(module.q(x).view(batch, time, -1, d)), cos, sin)
    k = torch.cat([key, apply_rotary(module.k_norm(module.k(x).view(batch, time, -1, d)), cos, sin)], 1)
    v = torch.cat([value, module.v(x).view(batch, time, -1, d)], 1)
    rows = []
    for row in range(batch):
        for t in range(time):
            last = cached + t
            keys = [i for i in range(last + 1) if last - i < SPAN and (i >= cached or bool(seen[row, i]))]
            for head in range(config.heads):
                group = head // (config.heads // config.kv_heads)
                scores = k[row, keys, group] @ q[row, t, head] / math.sqrt(d)
                rows.append(torch.softmax(scores, 0) @ v[row, keys, group])
    o = torch.stack(rows).view(batch, time, -1)
    if module.gate is not None:
        o = o * torch.sigmoid(module.gate(x))
    out: Tensor = module.o(o)
    return out
