"""The counter of storages that memory tests use."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.allocated import allocated
from sleep_kernels import linear_cross_entropy
from tests.storages import StorageCounter, graphs_counted

MIB = 1 << 20


def test_counts_a_storage_while_anything_refers_to_it() -> None:
    before = torch.zeros(1000)
    with StorageCounter() as storages:
        before.add_(1)
        old_view = before[1:]
        assert storages.alive == 0 and len(old_view) == 999
        x = before + 1
        view = x[3:]
        assert storages.alive == 4000
        del x
        assert storages.alive == 4000 and len(view) == 997
        del view
        assert storages.alive == 0
        scalar = torch.tensor(1.0)
        assert storages.alive == 4 and scalar == 1
    assert storages.peak == 4000


def test_counts_the_current_size() -> None:
    with StorageCounter() as storages:
        x = torch.empty(10)
        x.resize_(30)
        assert storages.alive == 120
        x.untyped_storage().resize_(0)
        assert storages.alive == 0


def test_counts_what_autograd_saves_and_temporaries_of_backward() -> None:
    x = torch.ones(1000, requires_grad=True)
    with StorageCounter() as storages:
        y = x.exp().sum()
        assert storages.alive == 4000 + 4, "exp saves its result"
        y.backward()
        # The gradient of exp is computed while its saved result still exists.
        assert storages.peak == 2 * 4000 + 2 * 4
    del y
    assert storages.alive == 4000, "x.grad"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sees_temporaries_inside_our_operators(dtype: torch.dtype) -> None:
    """Tiles of logits of at most 4 MiB in float32, which only exist inside the operator; all logits are 64 MiB in float32."""
    x, weight = (torch.zeros(n, 64, dtype=dtype, requires_grad=True) for n in (1024, 16384))
    targets = torch.zeros(1024, dtype=torch.int64)
    with StorageCounter() as forward:
        loss = linear_cross_entropy(x, weight, targets)
    assert 4 * MIB < forward.peak < 13 * MIB and forward.alive == loss.nbytes
    with StorageCounter() as backward:
        grads: tuple[Tensor, ...] = torch.autograd.grad(loss, (x, weight), torch.ones_like(loss))
    gradients = sum(grad.nbytes for grad in grads)
    assert gradients + 4 * MIB < backward.peak < 2 * gradients + 13 * MIB


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_does_not_depend_on_threads_or_onednn(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in bfloat16, for which kernels of some CPUs allocate scratch memory."""
    a, b = (torch.zeros(512, 512, dtype=torch.bfloat16) for _ in range(2))
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", threads != 2)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with StorageCounter() as storages:
            product = a @ b
            assert storages.alive == product.nbytes
        assert storages.peak == product.nbytes
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_allocator_sees_the_same_peak(compiled: bool) -> None:
    x, weight = torch.ones(1000, 8, requires_grad=True), torch.ones(8, 16, requires_grad=True)

    def loss() -> Tensor:
        return ((x @ weight).exp() @ weight.t()).sin().sum()

    with graphs_counted():
        run = torch.compile(loss, fullgraph=True) if compiled else loss

        def work() -> None:
            run().backward()
            x.grad = weight.grad = None

        work()
        with StorageCounter() as storages:
            work()
        _, peak = allocated(work)
    assert storages.peak == pytest.approx(peak, rel=0.01) and storages.peak >= 2 * 1000 * 16 * 4
