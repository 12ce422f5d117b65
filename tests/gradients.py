"""Compares gradients of all weights in float64."""

from collections.abc import Mapping

from torch import Tensor


def assert_same_gradients(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], bound: float = 1e-12) -> None:
    """No element is further off than `bound` times the largest gradient of its weight, or times 1 if that is smaller.

    An element that is small since large terms cancel is rounded as these are, and how depends on the CPU.
    """
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        apart, size = float((found[name] - gradient).abs().max()), max(1.0, float(gradient.abs().max()))
        assert apart <= bound * size, f"{name}: {apart:.1e} off, of at most {size:.1e}"
