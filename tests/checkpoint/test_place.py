"""Places of slices: what two slices have in common, against index arithmetic on whole tensors."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sleeptrain.checkpoint.place import Place, common, place_of_part, rectangle


@st.composite
def shards(draw: Any) -> tuple[tuple[int, ...], int | None, int, int]:
    """A tensor's shape, and a shard of it: dimension, number of shards, index."""
    shape = draw(st.sampled_from([(6, 4), (12,), (4, 6), (5, 3), (8, 1, 3), (1, 7)]))
    dim = draw(st.sampled_from([None, 0, *([1] if len(shape) == 2 else [])]))
    if dim is None:
        return shape, None, 1, 0
    count = draw(st.sampled_from([n for n in (1, 2, 3, 4) if dim == 0 or shape[dim] % n == 0]))
    return shape, dim, count, draw(st.integers(0, count - 1))


def part(draw: Any, shape: tuple[int, ...], dim: int | None, count: int, index: int) -> tuple[Place, torch.Tensor]:
    """A random slice of a shard, and the indexes of its elements in the whole tensor; those of padding are -1."""
    whole = torch.arange(torch.Size(shape).numel()).view(shape)
    local = whole
    if dim is not None:
        missing = -shape[dim] % count
        padding = torch.full((missing, *shape[1:]), -1) if dim == 0 else whole.new_empty(shape[0], 0)
        local = torch.cat([whole, padding], dim).chunk(count, dim)[index]
    flat = local.reshape(-1).clone()
    start = draw(st.integers(0, flat.numel()))
    size = draw(st.integers(0, flat.numel() - start))
    return place_of_part(shape, dim, index, tuple(local.shape), start, size), flat[start : start + size]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.data())
def test_what_two_slices_have_in_common_is_copied(data: Any) -> None:
    shape, *one = data.draw(shards())
    _, *other = data.draw(shards().filter(lambda shard: shard[0] == shape))
    source, have = part(data.draw, shape, *one)
    target, want = part(data.draw, shape, *other)
    have, want = have[: source.count], want[: target.count]
    assert (have >= 0).all() and (want >= 0).all(), "a place has no padding"
    into = torch.full_like(want, -7)
    for rows, columns, first, second in common(source, target):
        rectangle(into, target.width, rows, columns, second).copy_(rectangle(have, source.width, rows, columns, first))
    expected = torch.where(torch.isin(want, have), want, -7)
    assert torch.equal(into, expected)


def test_padding_after_the_last_row_has_no_place() -> None:
    """Three rows on two shards: the second has one row and one of padding."""
    place = place_of_part((3, 4), 0, 1, (2, 4), 0, 8)
    assert place == Place((3, 4), (0, 4), 8, 4)
    assert place_of_part((3, 4), 0, 1, (2, 4), 4, 4).count == 0
