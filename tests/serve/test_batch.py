"""The thread that computes: what happens to texts that wait while every row is taken, and the tokens of each of several prompts."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from sleeptrain.inference.session import SleepSession
from sleeptrain.program import Loop, Sleep
from sleeptrain.serve.batch import BatchThread, TextJob, TextProgress
from sleeptrain.serve.errors import ApiError
from sleeptrain.serve.limits import Limits
from sleeptrain.serve.request import CompletionRequest
from sleeptrain.serve.served import Served
from sleeptrain.serve.sessions import SessionStore
from sleeptrain.serve.texts import RequestTexts
from tests.model import toy

WAIT = 60.0
"""Timeout in seconds; only a hang takes that long."""


class Endless:
    """A text that always gets the same token and never ends."""

    finish = None

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def draw(self, logits: Any) -> int:
        return 1

    def push(self, token: int) -> str:
        self.tokens.append(token)
        return "a"


def job(deadline: float) -> tuple[TextJob, list[TextProgress], threading.Event]:
    found, heard = list[TextProgress](), threading.Event()

    def report(progress: TextProgress) -> None:
        found.append(progress)
        heard.set()

    return TextJob([1, 2], cast(Any, Endless()), report, deadline), found, heard


@pytest.fixture
def batch() -> Iterator[BatchThread]:
    """A batch of one row."""
    model, sleep = toy.model(), Sleep(window=4, loop=Loop(trigger="every"))
    batch = BatchThread(lambda: SleepSession(model, sleep), Limits(rows=1, waiting=2))
    batch.start()
    yield batch
    batch.stop()


def test_a_text_that_waits_ends_at_its_time_though_no_row_is_free(batch: BatchThread) -> None:
    now = time.monotonic()
    endless, _, writes = job(now + 10 * WAIT)
    batch.submit([endless])
    assert writes.wait(WAIT)
    late, found, heard = job(now - 1)
    patient, _, _ = job(now + 10 * WAIT)
    batch.submit([late, patient])
    assert heard.wait(WAIT), "it is answered while the other text goes on"
    assert [(each.error.status, each.error.code) for each in found if each.error] == [(504, "timeout")]
    assert not endless.cancelled.is_set() and late.cancelled.is_set() and not patient.cancelled.is_set()
    batch.submit([job(now + 10 * WAIT)[0]])  # its place is free


def test_the_tokens_of_every_prompt_are_limited() -> None:
    limits = Limits(session_tokens=20)
    served = Served("m", toy.model(), Sleep(window=4), cast(Any, None))

    async def ask(*prompts: list[int]) -> None:
        request = CompletionRequest(model="m", prompt=list(prompts), max_tokens=10)
        RequestTexts(request, served, cast(Any, None), SessionStore(limits), limits)

    with pytest.raises(ApiError, match=r"15 \+ max_tokens = 10 tokens are above 20"):
        asyncio.run(ask([1] * 5, [1] * 15))
