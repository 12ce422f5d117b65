"""What a server refuses or ends, so that its memory and the time of a request are bounded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The limits of a server."""

    rows: int = 32
    """Texts that are read and written at the same time, in one batch."""
    waiting: int = 128
    """Texts that wait for a row; more are refused."""
    tokens: int = 4096
    """Tokens that a request may ask for (`max_tokens`)."""
    body: int = 4 << 20
    """Bytes of a request's body."""
    seconds: float = 300.0
    """From the arrival of a request to the end of its answer."""
    sessions: int = 64
    """Sessions that are kept."""
    session_tokens: int = 1_000_000
    """Tokens that a session, or a request without one, may read and write."""
    session_seconds: float = 600.0
    """How long a session is kept that is not used."""
