"""Triton kernels of the gated delta rule in Triton's interpreter against the token-by-token reference in float64."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sleep_kernels import gated_delta_rule
from sleep_kernels.comparison import RULE_BFLOAT16, SLACK
from tests.kernels.rule_inputs import make_inputs

Interpreted = Callable[..., Any]
OPS = torch.ops.sleep_kernels
# Bound relative to each result's largest element, or to one if that is larger. Measured: mostly 3e-7, and 1.1e-5 for repeated
# keys, for which the problem is ill-conditioned.
FLOAT32 = 2e-5


def constant(inputs: dict[str, Tensor], **values: float) -> dict[str, Tensor]:
    return inputs | {name: torch.full_like(inputs[name], value) for name, value in values.items()}


def identical_keys() -> dict[str, Tensor]:
    inputs = make_inputs(64)
    return constant(inputs | {"k": inputs["k"][:, :1].expand_as(inputs["k"])}, g=0.0, beta=0.999)


def parallel_keys() -> dict[str, Tensor]:
    """Keys with pairwise cosines of about .99."""
    inputs = make_inputs(64)
    common = inputs["k"][:, :1]
    across = F.normalize(inputs["k"] - (inputs["k"] * common).sum(-1, keepdim=True) * common, dim=-1)
    return constant(inputs | {"k": math.sqrt(0.99) * common + math.sqrt(0.01) * across}, g=-1e-3, beta=0.95)


def periodic_keys() -> dict[str, Tensor]:
    inputs = make_inputs(65)
    return inputs | {"k": inputs["k"][:, torch.arange(65) % 4]}


def resets() -> dict[str, Tensor]:
    inputs = make_inputs(70)
    inputs["g"][:, 5::16] = -1e4
    return inputs


CASES: dict[str, Callable[[], dict[str, Tensor]]] = {
    "random, three chunks, grouped heads, two blocks of d": lambda: make_inputs(129, group=2, d_k=32, d_v=32),
    "one token": lambda: make_inputs(1),
    "63 tokens": lambda: make_inputs(63),
    "65 tokens": lambda: make_inputs(65),
    "two sequences, two key heads of two value heads": lambda: make_inputs(20, batch=2, key_heads=2, group=2),
    "64 identical keys, no decay": identical_keys,
    "cosines of .99": parallel_keys,
    "period of four keys": periodic_keys,
    "strong decay": lambda: constant(make_inputs(), g=-50.0),
    "zero beta": lambda: constant(make_inputs(), beta=0.0),
    "wider values than keys": lambda: make_inputs(d_v=32),
}
SLOW_CASES: dict[str, Callable[[], dict[str, Tensor]]] = {
    "192 tokens, two sequences": lambda: make_inputs(192, batch=2, group=2, d_k=32, d_v=32, seed=1),
    "beta near two": lambda: constant(make_inputs(128, seed=2), beta=1.9),
    "no decay": lambda: constant(make_inputs(129, seed=3), g=0.0),
    "a decay of exp(-1e4) per token": lambda: constant(make_inputs(), g=-1e4),
    "64 wide": lambda: make_inputs(70, d_k=64, d_v=64),
}


def run(
    inputs: dict[str, Tensor], backend: str, outputs: tuple[int, ...] = (0, 1), **options: Any
) -> dict[str, Tensor]:
    """Outputs and all gradients, for random gradients of the chosen outputs."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in inputs.items()}
    results = gated_delta_rule(**leaves, backend=backend, **options)
    generator = torch.Generator().manual_seed(99)
    weights = [torch.randn(t.shape, generator=generator) for t in results]
    # Rounded to the dtype of the outputs.
    weights = [
        w.to(torch.float32 if i else inputs["v"].dtype if backend == "triton" else w.dtype)
        for i, w in enumerate(weights)
    ]
    chosen = [results[i] for i in outputs]
    grads = torch.autograd.grad(
        chosen, list(leaves.values()), [weights[i].to(results[i].dtype) for i in outputs], materialize_grads=True
    )
    names = ("o", "final_state")
    return {**{names[i]: r.detach() for i, r in enumerate(results)}, **dict(zip(leaves, grads, strict=True))}


def differences(inputs: dict[str, Tensor], *outputs: int, **options: Any) -> dict[str, float]:
    """Largest difference of each result from the reference, relative to the reference's largest element."""
    actual = run(inputs, "triton", outputs or (0, 1), **options)
    expected = run({name: t.double() for name, t in inputs.items()}, "reference", outputs or (0, 1), **options)
    return {
        name: ((actual[name].double() - wanted).abs().max() / wanted.abs().max().clamp(min=1.0)).item()
        for name, wanted in expected.items()
    }


def case(name: str) -> dict[str, float]:
    return differences((CASES | SLOW_CASES)[name]())


@pytest.mark.parametrize("name", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_CASES)])
def test_outputs_and_all_gradients(interpreted: Interpreted, name: str) -> None:
    for tensor, difference in interpreted(case, name).items():
        assert difference < FLOAT32, f"{tensor}: {difference}"  # NaN fails too


def resets_case() -> dict[str, float]:
    return differences(resets())


def test_resets_among_ordinary_tokens(interpreted: Interpreted) -> None:
    # A cumulative sum over up to four resets per chunk loses float32 digits: 4 * 150 * 2^-24 is 4e-5.
    for tensor, difference in interpreted(resets_case).items():
        assert difference < 1e-4, f"{tensor}: {difference}"


def one_output_case(output: int) -> dict[str, float]:
    return differences(make_inputs(66), output, scale=0.3)


@pytest.mark.parametrize("output", [0, 1])
def test_gradient_of_one_output(interpreted: Interpreted, output: int) -> None:
    for tensor, difference in interpreted(one_output_case, output).items():
        assert difference < FLOAT32, f"{tensor}: {difference}"


def windows_case() -> dict[str, tuple[Tensor, Tensor]]:
    """Results and gradients of one window, and of two windows chained by the state. The first initial state is None."""
    inputs = make_inputs(100)
    del inputs["initial_state"]
    results = []
    for cuts in ([100], [65, 35]):
        leaves = {name: t.clone().requires_grad_() for name, t in inputs.items()}
        state, outputs = None, []
        for part in zip(*(t.split(cuts, dim=1) for t in leaves.values()), strict=True):
            o, state = gated_delta_rule(*part, state, backend="triton")
            outputs.append(o)
        o = torch.cat(outputs, 1)
        grads = torch.autograd.grad(o.sin().sum() + state.cos().sum(), list(leaves.values()))
        results.append([o.detach(), state.detach(), *grads])
    return dict(zip(("o", "state", *inputs), zip(*results, strict=True), strict=True))


def test_two_windows_equal_one_window(interpreted: Interpreted) -> None:
    for name, (one, two) in interpreted(windows_case).items():
        torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-5, msg=name)


def reproducible_case() -> bool:
    inputs = make_inputs(40, group=2)
    packed = torch.cat([inputs["q"], inputs["k"]], dim=-1)
    views = inputs | dict(zip("qk", packed.split(16, dim=-1), strict=True))
    results = [gated_delta_rule(**tensors, backend="triton") for tensors in (inputs, inputs, views)]
    return all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_bit_reproducible_and_strided(interpreted: Interpreted) -> None:
    assert interpreted(reproducible_case)


def slowly_decaying(**sizes: int) -> dict[str, Tensor]:
    """Half-lives of about 300 tokens and correlated keys, so that early rounding errors persist."""
    inputs = make_inputs(seed=4, **sizes)
    generator = torch.Generator().manual_seed(5)
    common = torch.randn(inputs["k"][:, :1].shape, generator=generator)
    return inputs | {
        "k": F.normalize(inputs["k"] + common / common.norm(dim=-1, keepdim=True) / 2, dim=-1),
        "g": -torch.exp(torch.randn(inputs["g"].shape, generator=generator) / 2 - 6),
        "initial_state": 0.3 * inputs["initial_state"],
    }


BFLOAT16: dict[str, Callable[[], dict[str, Tensor]]] = {
    "32 wide": lambda: make_inputs(129, d_k=32, d_v=32),
    "slow decay, grouped heads": lambda: slowly_decaying(time=129, group=2, d_k=32, d_v=32),
}
SLOW_BFLOAT16: dict[str, Callable[[], dict[str, Tensor]]] = {
    "64 wide": lambda: make_inputs(192, group=2, d_k=64, d_v=64),
    "slow decay, 64 wide": lambda: slowly_decaying(time=129, group=2, d_k=64, d_v=64),
}
LONG_BFLOAT16: dict[str, Callable[[], dict[str, Tensor]]] = {
    "slow decay, 64 wide, three chunks": lambda: slowly_decaying(time=193, key_heads=2, group=2, d_k=64, d_v=64),
}


def bfloat16_case(case: str) -> dict[str, float]:
    """Relative errors in the norm, by the names of the contract."""
    inputs = (BFLOAT16 | SLOW_BFLOAT16 | LONG_BFLOAT16)[case]()
    rounded = {name: t.bfloat16() if name in "qkv" else t for name, t in inputs.items()}
    actual = run(rounded, "triton")
    weights = torch.randn(inputs["v"].shape, generator=torch.Generator().manual_seed(99)).bfloat16().double()
    state_weights = torch.randn(inputs["initial_state"].shape, generator=_after(inputs["v"].numel())).double()
    leaves = {name: t.double().requires_grad_() for name, t in rounded.items()}
    o, final = gated_delta_rule(**leaves, backend="reference")
    grads = torch.autograd.grad([o, final], list(leaves.values()), [weights, state_weights])
    expected = {"o": o.detach(), "final_state": final.detach(), **dict(zip(leaves, grads, strict=True))}
    names = {"o": "o", "final_state": "final state"}
    return {
        names.get(name, f"gradient of {name}"): ((actual[name].double() - wanted).norm() / wanted.norm()).item()
        for name, wanted in expected.items()
    }


def _after(count: int) -> torch.Generator:
    generator = torch.Generator().manual_seed(99)
    torch.randn(count, generator=generator)
    return generator


@pytest.mark.parametrize(
    "case",
    [
        *BFLOAT16,
        *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW_BFLOAT16),
        *(pytest.param(case, marks=pytest.mark.exhaustive) for case in LONG_BFLOAT16),
    ],
)
def test_bfloat16(interpreted: Interpreted, case: str) -> None:
    """The accuracy contract. With slow decay and correlated keys rounding errors of the state add up over the window."""
    slack = SLACK if case.startswith("slow decay") else 1.0
    errors = interpreted(bfloat16_case, case)
    assert errors.keys() == RULE_BFLOAT16.keys()
    for name, error in errors.items():
        assert error < slack * RULE_BFLOAT16[name], f"{name}: {error}"


def opcheck_case() -> None:
    inputs = [t.requires_grad_() for t in make_inputs(3).values()]
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.use_deterministic_algorithms(False)  # else opcheck compares uninitialised memory
    torch.library.opcheck(OPS.gated_delta_rule_triton.default, (*inputs, 0.5, True, False), test_utils=utilities)
    compiled = torch.compile(lambda *t: gated_delta_rule(*t, backend="triton"), fullgraph=True, backend="aot_eager")
    for wanted, got in zip(gated_delta_rule(*inputs), compiled(*inputs), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    torch.use_deterministic_algorithms(True)


def test_registration_and_compilation_without_a_graph_break(interpreted: Interpreted) -> None:
    interpreted(opcheck_case)
