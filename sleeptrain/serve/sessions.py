"""Sessions by id: the state of a text between requests, with limits on number, tokens and idle time."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from sleeptrain.model.state import State
from sleeptrain.serve.errors import ApiError
from sleeptrain.serve.limits import Limits

NEW = "new"
"""What a request names as its session to begin one."""


@dataclass
class StoredSession:
    """A text that requests continue."""

    id: str
    state: State | None = None
    """The state after its newest request; None before the first one has ended."""
    tokens: int = 0
    """What it has read and written."""
    used: float = 0.0
    """When its newest request ended, on the store's clock."""
    busy: bool = False
    """Whether a request continues it now."""


class SessionStore:
    """The sessions of a server. Expired ones are dropped whenever one is looked for."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._sessions: dict[str, StoredSession] = {}

    def __len__(self) -> int:
        self._expire()
        return len(self._sessions)

    def take(self, name: str) -> StoredSession:
        """A session for one request, which must `release` it; a new one for `NEW`. Raises ApiError where there is none."""
        self._expire()
        if name == NEW:
            if len(self._sessions) >= self._limits.sessions:
                message = f"all {self._limits.sessions} sessions of this server are in use; delete one or wait"
                raise ApiError(429, message, "too_many_sessions", "session")
            name = secrets.token_urlsafe(16)
            self._sessions[name] = StoredSession(name)
        session = self._find(name)
        session.busy = True
        return session

    def release(self, session: StoredSession, state: State | None, tokens: int) -> None:
        """End a request: with its state after it has read and wrote `tokens`, or with None where it failed.

        After a failed request a session is as before it; one that has no other request is dropped.
        """
        session.busy, session.used = False, self._clock()
        if state is not None:
            session.state, session.tokens = state, session.tokens + tokens
        elif session.state is None:
            del self._sessions[session.id]

    def delete(self, name: str) -> None:
        """Drop a session. Raises ApiError if there is none, or a request continues it."""
        self._expire()
        del self._sessions[self._find(name).id]

    def _find(self, name: str) -> StoredSession:
        session = self._sessions.get(name)
        if session is None:
            message = f'session {name!r} does not exist or has expired; begin one with "session": "{NEW}"'
            raise ApiError(404, message, "session_not_found", "session")
        if session.busy:
            message = f"another request continues session {name!r}; wait for its end"
            raise ApiError(409, message, "session_busy", "session")
        return session

    def _expire(self) -> None:
        oldest = self._clock() - self._limits.session_seconds
        expired = [s.id for s in self._sessions.values() if not s.busy and s.used < oldest]
        for name in expired:
            del self._sessions[name]
