"""Where a slice of a tensor lies in the whole tensor, and the elements that two slices have in common.

Every layout keeps the same tensors in other slices: ZeRO divides flattened parameters, tensor parallelism rows or columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from torch import Tensor


@dataclass(frozen=True)
class Rectangle:
    """Consecutive rows and columns of a tensor that is read as a matrix."""

    row: int
    rows: int
    column: int
    columns: int
    first: int
    """Index of the first element in the values of the slice; its next row begins one slice width later."""


@dataclass(frozen=True)
class Place:
    """Elements `start` to `start + count` of some columns of a tensor, counted row by row.

    A tensor is read as a matrix of its first dimension by all others; a vector has one column.
    """

    shape: tuple[int, ...]
    """Shape of the whole tensor."""
    columns: tuple[int, int]
    """First column, and the one after the last."""
    start: int
    count: int

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.columns[1] - self.columns[0]

    def rectangles(self) -> Iterator[Rectangle]:
        """The parts of the slice: the rest of a row, whole rows, the beginning of a row; those that are not empty."""
        at, stop = self.start, self.start + self.count
        while at < stop:
            row, inside = divmod(at, self.width)
            if inside or stop - at < self.width:
                rows, columns = 1, min(stop - at, self.width - inside)
            else:
                rows, columns = (stop - at) // self.width, self.width
            yield Rectangle(row, rows, self.columns[0] + inside, columns, at - self.start)
            at += rows * columns


def place_of_part(
    shape: tuple[int, ...], dim: int | None, index: int, local: tuple[int, ...], offset: int, count: int
) -> Place:
    """The place of `count` elements from `offset` on of a flattened shard.

    The shard, of the shape `local`, is number `index` along `dim` of a tensor of `shape`; `dim` None if it is the whole tensor.
    Elements of padding, which a shard has after the last row of the tensor, are left out.
    """
    width = prod(shape[1:])
    columns = (0, width)
    if dim == 0:
        offset += index * prod(local)
    elif dim == 1:
        own = prod(local[1:])
        columns = (index * own, (index + 1) * own)
    rows = shape[0] if shape else 1
    return Place(shape, columns, offset, max(0, min(count, rows * (columns[1] - columns[0]) - offset)))


def common(source: Place, target: Place) -> Iterator[tuple[int, int, int, int]]:
    """The elements that are in both slices, as rectangles: rows, columns, first index in the source and in the target."""
    for one in source.rectangles():
        for other in target.rectangles():
            row, column = max(one.row, other.row), max(one.column, other.column)
            rows = min(one.row + one.rows, other.row + other.rows) - row
            columns = min(one.column + one.columns, other.column + other.columns) - column
            if rows > 0 and columns > 0:
                first, second = (
                    part.first + (row - part.row) * place.width + column - part.column
                    for part, place in ((one, source), (other, target))
                )
                yield rows, columns, first, second


def rectangle(values: Tensor, width: int, rows: int, columns: int, first: int) -> Tensor:
    """A view [rows, columns] of the 1-D values of a slice, whose place has `width` columns."""
    return values.as_strided((rows, columns), (width, 1), values.storage_offset() + first)
