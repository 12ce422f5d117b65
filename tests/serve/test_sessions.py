"""Sessions of a server by id: number, idle time, one request at a time, and what a failed request leaves."""

from __future__ import annotations

from typing import Any

import pytest

from sleeptrain.model.state import State
from sleeptrain.serve.errors import ApiError
from sleeptrain.serve.limits import Limits
from sleeptrain.serve.sessions import SessionStore

STATE = State((), {})


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> SessionStore:
    return SessionStore(Limits(sessions=2, session_seconds=10), clock)


def refused(call: Any, *args: Any) -> tuple[int, str]:
    with pytest.raises(ApiError) as error:
        call(*args)
    return error.value.status, error.value.code


def test_a_session_is_continued_by_its_id(store: SessionStore) -> None:
    first = store.take("new")
    store.release(first, STATE, 7)
    again = store.take(first.id)
    assert again is first and again.state is STATE and again.tokens == 7
    store.release(again, STATE, 5)
    assert first.tokens == 12
    assert store.take("new").id != first.id
    assert refused(store.take, "nothing") == (404, "session_not_found")


def test_one_request_continues_a_session_at_a_time(store: SessionStore) -> None:
    session = store.take("new")
    assert refused(store.take, session.id) == refused(store.delete, session.id) == (409, "session_busy")
    store.release(session, STATE, 1)
    assert store.take(session.id) is session


def test_the_number_of_sessions_is_limited(store: SessionStore) -> None:
    first, second = store.take("new"), store.take("new")
    assert refused(store.take, "new") == (429, "too_many_sessions")
    store.release(first, None, 0)  # failed before it had a state: dropped
    store.release(store.take("new"), STATE, 1)
    store.release(second, STATE, 1)
    store.delete(second.id)
    assert refused(store.take, second.id) == (404, "session_not_found")
    assert store.take("new")


def test_a_failed_request_leaves_a_session_as_it_was(store: SessionStore) -> None:
    session = store.take("new")
    store.release(session, STATE, 3)
    store.release(store.take(session.id), None, 100)
    assert store.take(session.id).tokens == 3


def test_an_idle_session_expires(store: SessionStore, clock: Clock) -> None:
    used, busy = store.take("new"), store.take("new")
    store.release(used, STATE, 1)
    clock.now = 9
    store.release(store.take(used.id), STATE, 1)
    clock.now = 18
    assert len(store) == 2
    clock.now = 20
    assert len(store) == 1, "the one that a request continues stays"
    assert refused(store.take, used.id) == (404, "session_not_found")
    store.release(busy, STATE, 1)
    assert store.take(busy.id) is busy
