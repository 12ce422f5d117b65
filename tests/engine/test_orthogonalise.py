"""Newton-Schulz over batches: against singular values and against the iteration of one matrix, in operators that are not fused."""

import pytest
import torch
from torch import Tensor

from sleeptrain.engine import orthogonalise as module
from sleeptrain.engine.orthogonalise import batch_elements, batch_sizes, orthogonalise
from tests.storages import StorageCounter

SHAPES = [(8, 8), (4, 16), (16, 4), (1, 5), (5, 1)]


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def plain(matrix: Tensor, steps: int = 5) -> Tensor:
    """The published iteration, for one matrix."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / matrix.norm()
    for _ in range(steps):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return x


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_singular_values_come_near_one_and_singular_vectors_stay(shape: tuple[int, int]) -> None:
    batch = random(3, *shape, dtype=torch.float64)
    for matrix, result in zip(batch.clone(), orthogonalise(batch), strict=True):
        values = torch.linalg.svdvals(result)
        assert values.min() > 0.3 and values.max() < 1.3
        # U f(S) V^T has U^T M V diagonal.
        u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
        middle = u.mT @ result @ vh.mT
        torch.testing.assert_close(middle, torch.diag(middle.diagonal()), atol=1e-10, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 4, 5])
def test_every_matrix_of_a_batch_is_that_of_the_published_iteration(shape: tuple[int, int], steps: int) -> None:
    """With norms that differ by many orders, and a factor."""
    batch = random(4, *shape, dtype=torch.float64) * torch.tensor([1.0, 1e-5, 1e5, 3.0]).double()[:, None, None]
    expected = torch.stack([plain(matrix, steps) for matrix in batch])
    torch.testing.assert_close(orthogonalise(batch, steps, scale=-0.3), -0.3 * expected, atol=1e-12, rtol=1e-10)


def test_bf16_adds_little_to_the_distance_from_the_polar_factor() -> None:
    """The iteration itself ends about 20 % away; rounding moves its result by 2 to 4 %, as it does that of separate operators."""

    def distance(found: Tensor, expected: Tensor) -> float:
        return float((found.double() - expected).norm() / expected.norm())

    for shape in ((96, 96), (160, 64), (64, 160), (128, 352)):
        matrix = random(*shape)
        exact = plain(matrix.double())
        u, _, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
        ours, separate = orthogonalise(matrix.bfloat16()[None])[0], plain((matrix / matrix.norm()).bfloat16())
        assert distance(ours, exact) < 0.045 and distance(separate, exact) < 0.045
        assert distance(ours, u @ vh) < 1.1 * distance(exact, u @ vh) < 0.3


def test_a_zero_matrix_stays_zero_and_memory_of_before_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products into memory that was not written: it may have any value, NaN too."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()  # what torch fills such memory with
        batch = torch.stack([torch.zeros(4, 6), random(4, 6)])
        result = orthogonalise(batch.clone())
    finally:
        torch.use_deterministic_algorithms(False)
    assert not result[0].any()
    torch.testing.assert_close(result[1], plain(batch[1]), atol=1e-5, rtol=1e-4)


def test_batches_are_few_and_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 100)
    assert batch_sizes(11, 5, 5) == [4, 4, 3]
    assert batch_sizes(4, 5, 5) == [4] and batch_sizes(3, 10, 11) == [1, 1, 1] and batch_sizes(0, 5, 5) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(32, 32), (16, 48), (48, 16)])
def test_memory_of_a_batch(shape: tuple[int, int], dtype: torch.dtype) -> None:
    source = random(3, *shape)
    with StorageCounter() as storages:
        orthogonalise(source.to(dtype, copy=True))
    norms = 2 * 3 * 4  # and less than 1 kB
    expected = dtype.itemsize * batch_elements(3, *shape)
    assert expected <= storages.peak <= expected + norms
