"""DeepSpeed's flat buffers of ZeRO 1 and 2 keep weights side by side, so that training has joint products; those of ZeRO 3 do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sleeptrain.engine import EngineSpec, Optim, build_engine
from sleeptrain.execute.autograd import CheckpointedExecutor, ExecutorOptions
from sleeptrain.model import stack
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.program import Loop, Sleep, compile
from tests.distributed import run
from tests.model import toy

SLEEP, LAYOUT = Sleep(window=4, passes=1, loop=Loop(trigger="every")), toy.windows(4, 1)
CASES = [("bf16", 1), ("bf16", 2), ("fp32", 1)]
FORWARD = {True: 4 + 6 + 1, False: 8 + 10 + 1}
"""Products of an attention block, of one with Gated DeltaNet, and of the head, by whether weights are joint."""


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.mm.default
        return func(*args, **(kwargs or {}))


def separate(groups: Sequence[Any]) -> list[None]:
    return [None] * len(groups)


def trained(precision: str, zero: int, joint: bool) -> tuple[int, list[float], list[torch.Tensor]]:
    """Products of a forward, gradient norms of two steps, and the weights after them."""
    optim = Optim(name="muon", lr=0.02, adam_lr=0.01, ns_dtype="float32")
    spec = EngineSpec(precision=precision, zero=zero, micro_rows=2, accumulation=1)  # type: ignore[arg-type]
    engine = build_engine(toy.model("AG", dtype=torch.float32), optim, spec)
    model, norms = engine.module, []
    tokens, targets = toy.batch(LAYOUT)
    program = compile(SLEEP, LAYOUT, 2)
    options = ExecutorOptions(grad_buffers=engine.grad_buffers)
    with mock.patch.object(stack, "joint_weights", stack.joint_weights if joint else separate):
        for _ in range(2):
            batch = MicroBatch(tokens, targets, model.zero_state(SLEEP, 2))
            with Products() as products:
                (output,) = CheckpointedExecutor(model, [batch], program, SLEEP, "none", options=options).run()
            engine.backward(output.nll.sum() * engine.scale(8))
            norms.append(engine.step().grad_norm)
    weights = [weight.detach().clone() for weight in model.parameters()]
    engine.close()
    return products.count, norms, weights


def pairs() -> list[Any]:
    return [[trained(*case, joint) for joint in (True, False)] for case in CASES]


def check(found: list[Any]) -> None:
    for (precision, _), pair in zip(CASES, found, strict=True):
        assert [count for count, _, _ in pair] == [FORWARD[True], FORWARD[False]]
        (_, norms, weights), (_, wanted_norms, wanted) = pair
        if precision == "bf16":  # rounding grows from step to step
            assert norms[0] == pytest.approx(wanted_norms[0], rel=1e-2)
            continue
        assert norms == pytest.approx(wanted_norms, rel=1e-5)
        for weight, other in zip(weights, wanted, strict=True):
            assert (weight - other).norm() <= 1e-5 * other.norm().clamp_min(1e-3)


def test_weights_are_joint_on_one_process() -> None:
    check(pairs())


@pytest.mark.slow
def test_weights_are_joint_on_two_processes() -> None:
    for found in run(pairs, 2):
        check(found)


def test_zero_3_has_separate_products() -> None:
    spec = EngineSpec(precision="fp32", zero=3, micro_rows=2, accumulation=1)
    engine = build_engine(toy.model("AG", dtype=torch.float32), Optim(name="adamw"), spec)
    for block in engine.module.layers:
        weights = block.joint_weights()
        assert not any(weight is not None for weight in (*weights.mixer, weights.mlp))
