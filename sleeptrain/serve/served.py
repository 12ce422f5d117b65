"""The model that a server serves."""

from __future__ import annotations

from dataclasses import dataclass

from sleeptrain.inference.session import SleepSession
from sleeptrain.inference.text import Codec
from sleeptrain.model.language import LanguageModel
from sleeptrain.program import Sleep


@dataclass(frozen=True)
class Served:
    """A model under a name, and how it sleeps."""

    name: str
    model: LanguageModel
    sleep: Sleep
    codec: Codec
    passes: int | None = None
    """N; None: as trained."""
    compiled: bool = False
    """Whether single tokens are read by compiled functions."""

    @property
    def vocab(self) -> int:
        """The number of token ids."""
        return self.model.embed.num_embeddings

    def empty_session(self) -> SleepSession:
        """A session of one row."""
        return SleepSession(self.model, self.sleep, passes=self.passes, compiled=self.compiled)
