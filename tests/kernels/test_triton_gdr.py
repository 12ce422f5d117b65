"""The gated delta rule's Triton kernels under Triton's interpreter, against the token-by-token reference in float64."""

import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sleep_kernels import dispatch, gated_delta_rule, verified

Interpreted = Callable[..., Any]
OPS = torch.ops.sleep_kernels
# In units of each result's largest element, or of one. Measured: mostly 3e-7, and 1.1e-5 where keys repeat, since there
# a small change of the inputs is a larger one of the results.
FLOAT32 = 2e-5


def make_inputs(
    time: int = 70, batch: int = 1, key_heads: int = 1, group: int = 1, d_k: int = 16, d_v: int = 16, seed: int = 0
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    heads = key_heads * group
    return {
        "q": F.normalize(normal(batch, time, key_heads, d_k), dim=-1),
        "k": F.normalize(normal(batch, time, key_heads, d_k), dim=-1),
        "v": normal(batch, time, heads, d_v),
        "g": -torch.rand(batch, time, heads, generator=generator),
        "beta": torch.rand(batch, time, heads, generator=generator),
        "initial_state": normal(batch, heads, d_k, d_v),
    }


def constant(inputs: dict[str, Tensor], **values: float) -> dict[str, Tensor]:
    return inputs | {name: torch.full_like(inputs[name], value) for name, value in values.items()}


def identical_keys() -> dict[str, Tensor]:
    inputs = make_inputs(64)
    return constant(inputs | {"k": inputs["k"][:, :1].expand_as(inputs["k"])}, g=0.0, beta=0.999)


def parallel_keys() -> dict[str, Tensor]:
    """Keys whose cosines are about .99."""
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
    "random, three chunks, grouped heads, two parts of d": lambda: make_inputs(129, group=2, d_k=32, d_v=32),
    "one token": lambda: make_inputs(1),
    "63 tokens": lambda: make_inputs(63),
    "65 tokens": lambda: make_inputs(65),
    "two sequences, two key heads of two": lambda: make_inputs(20, batch=2, key_heads=2, group=2),
    "64 identical keys, no decay": identical_keys,
    "cosines of .99": parallel_keys,
    "period of four keys": periodic_keys,
    "decay of almost everything": lambda: constant(make_inputs(), g=-50.0),
    "nothing written": lambda: constant(make_inputs(), beta=0.0),
    "wider values than keys": lambda: make_inputs(d_v=32),
}
SLOW_CASES: dict[str, Callable[[], dict[str, Tensor]]] = {
    "192 tokens, two sequences": lambda: make_inputs(192, batch=2, group=2, d_k=32, d_v=32, seed=1),
    "write strength up to two": lambda: constant(make_inputs(128, seed=2), beta=1.9),
    "no decay": lambda: constant(make_inputs(129, seed=3), g=0.0),
    "a decay of exp(-1e4) a token": lambda: constant(make_inputs(), g=-1e4),
    "64 wide": lambda: make_inputs(70, d_k=64, d_v=64),
}


def run(
    inputs: dict[str, Tensor], backend: str, outputs: tuple[int, ...] = (0, 1), **options: Any
) -> dict[str, Tensor]:
    """Outputs and all gradients, those of the chosen outputs being random."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in inputs.items()}
    results = gated_delta_rule(**leaves, backend=backend, **options)
    generator = torch.Generator().manual_seed(99)
    weights = [torch.randn(t.shape, generator=generator) for t in results]
    # Rounded as the narrow run would see them.
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
    """Of each result, the largest difference from the reference in units of the reference's largest element."""
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
    # A running sum of up to four resets a chunk costs float32 digits: 4 * 150 * 2^-24 is 4e-5.
    for tensor, difference in interpreted(resets_case).items():
        assert difference < 1e-4, f"{tensor}: {difference}"


def one_output_case(output: int) -> dict[str, float]:
    return differences(make_inputs(66), output, scale=0.3)


@pytest.mark.parametrize("output", [0, 1])
def test_gradient_of_one_output(interpreted: Interpreted, output: int) -> None:
    for tensor, difference in interpreted(one_output_case, output).items():
        assert difference < FLOAT32, f"{tensor}: {difference}"


def windows_case() -> dict[str, tuple[Tensor, Tensor]]:
    """Gradients through two windows, chained by the state, and through one; once, the state begins as None."""
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


def test_two_windows_equal_one(interpreted: Interpreted) -> None:
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
    """Half-lives of about 300 tokens and keys partly alike: what is rounded early is still there much later."""
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
    "slow decay, 64 wide": lambda: slowly_decaying(time=193, key_heads=2, group=2, d_k=64, d_v=64),
}


def bfloat16_case(case: str) -> dict[str, tuple[float, float]]:
    """Relative errors in the norm: of the kernels, and of the exact results rounded to bfloat16."""
    inputs = (BFLOAT16 | SLOW_BFLOAT16)[case]()
    rounded = {name: t.bfloat16() if name in "qkv" else t for name, t in inputs.items()}
    actual = run(rounded, "triton")
    weights = torch.randn(inputs["v"].shape, generator=torch.Generator().manual_seed(99)).bfloat16().double()
    state_weights = torch.randn(inputs["initial_state"].shape, generator=_after(inputs["v"].numel())).double()
    leaves = {name: t.double().requires_grad_() for name, t in rounded.items()}
    o, final = gated_delta_rule(**leaves, backend="reference")
    grads = torch.autograd.grad([o, final], list(leaves.values()), [weights, state_weights])
    expected = {"o": o.detach(), "final_state": final.detach(), **dict(zip(leaves, grads, strict=True))}
    return {
        name: (
            ((actual[name].double() - wanted).norm() / wanted.norm()).item(),
            ((wanted.bfloat16().double() - wanted).norm() / wanted.norm()).item(),
        )
        for name, wanted in expected.items()
    }


def _after(count: int) -> torch.Generator:
    generator = torch.Generator().manual_seed(99)
    torch.randn(count, generator=generator)
    return generator


@pytest.mark.parametrize("case", [*BFLOAT16, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW_BFLOAT16)])
def test_bfloat16(interpreted: Interpreted, case: str) -> None:
    """The unit is what rounding the exact result to bfloat16 costs. What is rounded on the way to a tensor core costs as
    much each time, so what matters goes there as two numbers; and what is float32 to the end, states and the gradients of
    g and beta, can be better than its rounding.
    """
    for name, (error, rounding) in interpreted(bfloat16_case, case).items():
        assert error < 1.5 * rounding, f"{name}: {error / rounding}"


def opcheck_case() -> None:
    inputs = [t.requires_grad_() for t in make_inputs(3).values()]
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.use_deterministic_algorithms(False)  # or opcheck compares uninitialised memory
    torch.library.opcheck(OPS.gated_delta_rule_triton.default, (*inputs, 0.5, False), test_utils=utilities)
    compiled = torch.compile(lambda *t: gated_delta_rule(*t, backend="triton"), fullgraph=True, backend="aot_eager")
    for wanted, got in zip(gated_delta_rule(*inputs), compiled(*inputs), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    torch.use_deterministic_algorithms(True)


def test_registration_and_compilation_without_a_graph_break(interpreted: Interpreted) -> None:
    interpreted(opcheck_case)


def test_needs_a_gpu() -> None:
    with pytest.raises(ValueError, match="needs tensors on a GPU"):
        gated_delta_rule(**make_inputs(3), backend="triton")


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of compute capability 9.0 as far as the dispatch of a backend can see."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    dispatch._config_for_gpu.cache_clear()
    yield
    dispatch._config_for_gpu.cache_clear()


def choose(d: int = 128, dtype: str = "bfloat16", verified_only: bool = False) -> verified.LaunchConfig | None:
    return dispatch._config_for_gpu("gated_delta_rule", 0, dtype, d, d, verified_only)


def test_the_table_decides(hopper: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sleep_kernels")
    assert choose() is not None
    assert "runs in Triton: Triton 3.7.1, sm_90, bfloat16, d_k=128, d_v=128" in caplog.messages[-1]
    for config in (choose(d=48), choose(dtype="float16")):
        assert config is None
        assert "runs in plain torch" in caplog.messages[-1] and "not in the table" in caplog.messages[-1]
    said = len(caplog.messages)
    choose(d=48)
    assert len(caplog.messages) == said  # once
    monkeypatch.setattr(dispatch, "triton_version", lambda: "3.9.0")
    assert choose(d=64) is None


@pytest.mark.parametrize("on_gpu", [False, True])
def test_auto_wants_an_entry_verified_on_a_gpu(hopper: None, monkeypatch: pytest.MonkeyPatch, on_gpu: bool) -> None:
    entry = dict(next(e for e in verified.table() if e["triton"] == "3.7.1" and e["d"] == 128))
    monkeypatch.setattr(verified, "table", lambda: (entry | {"verified_on_gpu": on_gpu},))
    verified.find.cache_clear()
    assert (choose(verified_only=True) is not None) == on_gpu
    verified.find.cache_clear()


def test_every_entry_of_the_table_is_complete() -> None:
    keys = [(e["triton"], e["arch"], e["dtype"], e["d"]) for e in verified.table()]
    assert len(set(keys)) == len(keys)
    assert all(verified.find(*key) is not None for key in keys)
