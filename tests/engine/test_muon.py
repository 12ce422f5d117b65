"""Muon over flat partitions against one matrix after the other, whatever the batches and the partitions."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from sleeptrain.engine import orthogonalise as module
from sleeptrain.engine.muon import Fragment, MatrixPartition, Muon, exchange_fragments
from sleeptrain.engine.orthogonalise import COEFFICIENTS
from sleeptrain.parallel.process import init_distributed
from tests.distributed import run

LR, DECAY, MOMENTUM, STEPS = 0.1, 0.3, 0.9, 3
SHAPES = [(6, 6), (4, 10), (6, 6), (10, 4), (6, 6), (1, 4), (4, 10), (6, 6)]


def random(count: int, seed: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def sizes(shapes: Sequence[tuple[int, int]]) -> list[int]:
    return [rows * cols for rows, cols in shapes]


def count_all() -> int:
    return sum(sizes(SHAPES))


def trained_alone(weights: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """Muon of one matrix, an operator for each sum."""
    a, b, c = COEFFICIENTS
    momentum = torch.zeros_like(weights)
    for gradient in gradients:
        momentum = MOMENTUM * momentum + (1 - MOMENTUM) * gradient
        direction = (1 - MOMENTUM) * gradient + MOMENTUM * momentum
        x = direction / direction.norm()
        for _ in range(5):
            s = x @ x.mT
            x = a * x + (b * s + c * s @ s) @ x
        rows, cols = weights.shape
        weights = (1 - LR * DECAY) * weights - LR * max(1.0, rows / cols) ** 0.5 * x
    return weights


def fragments_of(shapes: Sequence[tuple[int, int]], world: int) -> tuple[int, list[list[Fragment]]]:
    """Elements of a partition, and the fragments of `world` equal partitions by rank."""
    starts = [0, *torch.tensor(sizes(shapes)).cumsum(0).tolist()]
    size = -(-starts[-1] // world)
    found: list[list[Fragment]] = [[] for _ in range(world)]
    for matrix, (first, stop) in enumerate(pairwise(starts)):
        for rank in range(world):
            low, high = max(first, rank * size), min(stop, (rank + 1) * size)
            if low < high:
                found[rank].append(Fragment(matrix, low - rank * size, low - first, high - low))
    return size, found


class Messages:
    """All-to-all of processes that run one after the other: in a first round they send, in a second one they receive."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.rank, self.receiving = 0, False
        self.sent: dict[int, list[Tensor]] = {}

    def __call__(self, received: Tensor, send: Tensor, receive_sizes: Any, send_sizes: Any, group: Any) -> None:
        if self.receiving:
            received.copy_(torch.cat([self.sent[other][self.rank] for other in range(self.world)]))
            assert receive_sizes == [len(self.sent[other][self.rank]) for other in range(self.world)]
        else:
            received.zero_()
            self.sent[self.rank] = list(send.clone().split(send_sizes))


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(world: int) -> Messages:
        made = Messages(world)
        monkeypatch.setattr("torch.distributed.all_to_all_single", made)
        return made

    return install


def muon(flat: Tensor, fragments: list[list[Fragment]], rank: int, dtype: torch.dtype) -> Muon:
    """An optimizer of one partition."""
    group = {"params": [torch.nn.Parameter(flat)], "muon": True, "lr": LR, "weight_decay": DECAY}
    optimizer = Muon([group], momentum=MOMENTUM, ns_dtype=dtype)
    optimizer.set_partition(MatrixPartition(SHAPES, fragments, rank, None))
    return optimizer


def trained(world: int, dtype: torch.dtype, messages: Any) -> Tensor:
    """All matrices after STEPS steps over partitions of `world` ranks, with padding at the end."""
    size, fragments = fragments_of(SHAPES, world)
    count = count_all()
    padded = partial(torch.nn.functional.pad, pad=(0, world * size - count))
    parts = list(padded(random(count, 0)).split(size))
    exchange, optimizers = messages(world), {}
    for step in range(STEPS):
        gradients = padded(random(count, 1 + step)).split(size)
        for exchange.receiving in (False, True):
            for rank in range(world):
                exchange.rank = rank
                optimizer = muon(parts[rank].clone(), fragments, rank, dtype)
                [parameter] = optimizer.param_groups[0]["params"]
                if step:
                    optimizer.state[parameter] = {
                        k: v.clone() for k, v in optimizers[rank].state_dict()["state"][0].items()
                    }
                parameter.grad = gradients[rank].clone()
                optimizer.step()
                assert torch.equal(parameter.grad, gradients[rank])
                if exchange.receiving:
                    optimizers[rank], parts[rank] = optimizer, parameter.detach()
    flat = torch.cat(parts)
    assert not flat[count:].any()
    return flat[:count]


@pytest.mark.parametrize(
    "batch", [2**27, 80, 1], ids=["one batch a shape", "two matrices a batch", "one matrix a batch"]
)
@pytest.mark.parametrize("world", [1, 2, 5])
def test_every_matrix_is_updated_as_if_alone(
    world: int, batch: int, messages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matrices of four shapes, tall and wide, whole and divided over partitions."""
    monkeypatch.setattr(module, "BATCH", batch)
    given = [random(count_all(), seed).split(sizes(SHAPES)) for seed in range(1 + STEPS)]
    found = trained(world, torch.float32, messages).split(sizes(SHAPES))
    for i, shape in enumerate(SHAPES):
        weights, *gradients = (tensors[i].view(shape) for tensors in given)
        expected = trained_alone(weights, gradients)
        torch.testing.assert_close(found[i].view(shape), expected, atol=2e-5, rtol=0)


def test_in_bf16_partitions_change_little(messages: Any) -> None:
    """Directions travel in bf16, in which they are orthogonalised."""
    one, several = trained(1, torch.bfloat16, messages), trained(3, torch.bfloat16, messages)
    exact, start = trained(1, torch.float64, messages), random(count_all(), 0)
    assert (one - several).norm() < 0.02 * (exact - start).norm()
    assert (one - exact).norm() < 0.03 * (exact - start).norm()


def part_of_a_process(dtype: torch.dtype) -> Tensor:
    """The partition of this process after one step."""
    process = init_distributed()
    size, fragments = fragments_of(SHAPES, process.world)
    optimizer = muon(random(count_all(), 0).split(size)[process.rank].clone(), fragments, process.rank, dtype)
    [parameter] = optimizer.param_groups[0]["params"]
    parameter.grad = random(count_all(), 1).split(size)[process.rank].clone()
    optimizer.step()
    return parameter.detach()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_processes_send_each_other_the_parts_of_a_divided_matrix(dtype: torch.dtype) -> None:
    """Real messages in the dtype of directions, against one matrix after the other."""
    _, fragments = fragments_of(SHAPES, 2)
    assert MatrixPartition(SHAPES, fragments, 0, None).divided
    found, start = torch.cat(run(part_of_a_process, 2, dtype)), random(count_all(), 0)
    pairs = [flat.split(sizes(SHAPES)) for flat in (start, random(count_all(), 1))]
    alone = [trained_alone(w.view(shape), [g.view(shape)]) for w, g, shape in zip(*pairs, SHAPES, strict=True)]
    expected = torch.cat([weights.flatten() for weights in alone])
    bound = 1e-5 if dtype == torch.float32 else 0.05
    assert (found - expected).norm() < bound * (expected - start).norm()


def test_fragments_are_in_batches_of_one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 80)
    _, fragments = fragments_of(SHAPES, 1)
    partition = MatrixPartition(SHAPES, fragments, 0, None)
    matrices = [[fragment.matrix for fragment in batch] for batch in partition.batches]
    assert matrices == [[0, 2], [4, 7], [1, 6], [3], [5]]


def test_every_process_gets_the_other_parts_of_its_matrices(messages: Any) -> None:
    """Five flat partitions that end within matrices, one matrix that lies in four of them, and one message for each pair of ranks."""
    shapes, world = [(2, 3), (8, 5), (1, 4), (3, 3)], 5
    flat = torch.arange(float(sum(sizes(shapes))))
    size, fragments = fragments_of(shapes, world)
    starts, exchange = [0, *torch.tensor(sizes(shapes)).cumsum(0).tolist()], messages(world)
    for exchange.receiving in (False, True):
        for exchange.rank in range(world):
            part = flat[exchange.rank * size : (exchange.rank + 1) * size]

            def write(fragment: Fragment, out: Tensor, part: Tensor = part) -> None:
                out.copy_(part.narrow(0, fragment.start, fragment.numel))

            partition = MatrixPartition(shapes, fragments, exchange.rank, None)
            remote = exchange_fragments(write, partition, flat.new_empty(0))
            for own in fragments[exchange.rank] if exchange.receiving else []:
                parts = [(own, part[own.start :][: own.numel]), *remote.get(own.matrix, [])]
                whole = torch.cat([values for _, values in sorted(parts, key=lambda each: each[0].offset)])
                assert torch.equal(whole, flat[starts[own.matrix] : starts[own.matrix + 1]])
