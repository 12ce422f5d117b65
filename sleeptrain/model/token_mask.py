"""Which tokens of a window a pass reads, and where documents begin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from torch import Tensor

from sleeptrain.program import Pass

MaskName = Literal["valid", "prefix"]
"""The tensor of a `TokenMask` that says which tokens are read."""


@dataclass(frozen=True)
class TokenMask:
    """The mask of the tokens [rows, time] of one window in one pass. A missing tensor masks nothing.

    A window may hold several documents: what is left of the one that the state continues, and those that begin in it. Pass 1
    reads all of them, each by itself: the first token of a document resets the fast weights, the convolution and attention.
    Passes 2..N read the last one only. The others have ended, so nobody reads their fast weights again, and a reset in a
    later pass would erase what pass 1 wrote for the last one.
    """

    valid: Tensor | None = None
    """[rows, time] bool, false at tokens that are not read: padding, and in passes 2..N earlier documents than the last."""
    prefix: Tensor | None = None
    """[rows, time] bool, in place of `valid` where the tokens that are read are the first ones of every row. No token that is
    read comes after one that is not, so that causal attention within the window needs no mask."""
    starts: Tensor | None = None
    """[rows, time] bool, true at the first token of every document that begins in the window; None in passes 2..N."""
    cached: Tensor | None = None
    """[rows, 1] bool, false where the attention cache holds no token of a document that the pass reads."""

    def in_pass(self, op: Pass) -> TokenMask:
        """The mask of a pass, from that of pass 1."""
        if self.starts is None or not op.last_document:
            return self
        document = self.document()
        last = document == document[:, -1:]
        return TokenMask(last if self.read is None else last & self.read, cached=document[:, -1:] == 0)

    @property
    def read(self) -> Tensor | None:
        """`valid` or `prefix`: [rows, time] bool, true at tokens that are read; None: all are."""
        return self.prefix if self.valid is None else self.valid

    def document(self) -> Tensor:
        """Number of each token's document [rows, time] int64: 0 for the one that the state continues."""
        assert self.starts is not None
        return self.starts.cumsum(1)

    def named(self) -> dict[str, Tensor]:
        """The tensors that there are, by name."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    @classmethod
    def from_named(cls, tensors: Mapping[str, Tensor]) -> TokenMask:
        """The inverse of `named`; other tensors are left out."""
        return cls(**{field.name: tensors[field.name] for field in fields(cls) if field.name in tensors})


NO_MASK = TokenMask()
"""All tokens are read and belong to one document."""
