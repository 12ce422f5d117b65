"""The state: declarations of leaves, borders, eviction, reset and flattening."""

import pytest
import torch

from sleeptrain.model.state import State, leaves
from sleeptrain.program import Boundary, Evict, Loop, Sleep
from tests.model import toy


def filled(sleep, live=False, time=5):
    spec = leaves(toy.config(), sleep, live=live)
    state = State.zeros(spec, 3)
    generator = torch.Generator().manual_seed(0)

    def values(leaf):
        shape = (3, time, *leaf.shape[1:]) if leaf.timed else (3, *leaf.shape)
        return torch.rand(shape, generator=generator).add(0.1).mul(9).to(leaf.dtype)

    return state.replace({f.name: values(f) for f in spec})


def test_leaves_declare_shape_dtype_and_borders():
    spec = {f.name: f for f in leaves(toy.config(), Sleep(window=8, evict=Evict("sliding")), torch.bfloat16)}
    assert [n for n in spec if n.startswith("layers.0")] == ["layers.0.key", "layers.0.value", "layers.0.seen"]
    fast, conv, key = spec["layers.1.fast"], spec["layers.1.conv"], spec["layers.0.key"]
    assert (fast.shape, fast.dtype, fast.tensor_dim) == ((4, 4, 4), torch.float32, 1)
    assert (conv.shape, conv.dtype, conv.tensor_dim) == ((3, 2, 4 + 4 + 8), torch.bfloat16, 2)
    assert key.shape == (7, 2, 4) and key.timed and "eviction" in key.crosses
    assert "eviction" not in leaves(toy.config(), Sleep(window=8))[0].crosses


@pytest.mark.parametrize("carry", [True, False])
def test_leaves_that_do_not_cross_a_border_are_reset(carry):
    state = filled(Sleep(window=8, evict=Evict("hard", conv_carry=carry)))
    crossed = state.cross("pass")
    assert torch.equal(crossed["layers.1.fast"], state["layers.1.fast"])
    assert bool(crossed["layers.1.conv"].any()) == carry
    assert crossed["layers.0.key"].shape == (3, 0, 2, 4)


def test_eviction_keeps_the_newest_tokens_and_detaches_if_the_boundary_does():
    state = filled(Sleep(window=3, evict=Evict("sliding")))
    state = state.replace({n: t.requires_grad_() for n, t in state.tensors.items() if t.is_floating_point()})
    evicted = state.evict(Boundary(0, keep_kv=2, detach=False))
    assert (
        torch.equal(evicted["layers.0.key"], state["layers.0.key"][:, -2:]) and evicted["layers.1.fast"].requires_grad
    )
    assert (
        evicted["layers.0.key"].untyped_storage().nbytes() == evicted["layers.0.key"].nbytes
    )  # a copy, so that the rest is freed
    assert not any(t.requires_grad for t in state.evict(Boundary(0, 2, detach=True)).flat())
    assert state.forget_newest(4, (0, 1))["layers.0.key"].shape[1] == 1
    assert state.forget_newest(4, (0, 1))["layers.2.key"].shape[1] == 5


def test_selecting_and_resetting_rows():
    state = filled(Sleep(window=8, evict=Evict("sliding")), live=True)
    assert torch.equal(state.rows(torch.tensor([2, 0]))["layers.1.fast"], state["layers.1.fast"][[2, 0]])
    reset = state.reset(torch.tensor([True, False, True]))
    for leaf in state.spec:
        assert reset[leaf.name].dtype == leaf.dtype
        assert torch.equal(reset[leaf.name][[0, 2]], state[leaf.name][[0, 2]]) and not reset[leaf.name][1].any()


def test_unflat_inverts_flat_and_nbytes_counts_by_kind():
    state = filled(Sleep(window=8), live=True)
    restored = state.unflat(state.flat())
    assert all(torch.equal(restored[f.name], state[f.name]) for f in state.spec)
    assert state.nbytes("fast") == 2 * 3 * 4 * 4 * 4 * 4
    assert state.nbytes() == sum(t.nbytes for t in state.flat())


def test_live_leaves_include_the_state_of_a_coda_that_runs_after_the_last_pass():
    names = {f.name for f in leaves(toy.config(), Sleep(window=4, loop=Loop(layers=(0, 2))), live=True)}
    assert {"live.layers.2.key", "live.layers.3.fast"} <= names and "live.layers.1.fast" not in names
