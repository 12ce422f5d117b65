"""A stream whose client never reads: it ends after its time and gives back what it holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from sleeptrain.serve.app import TimedStream


class Texts:
    closed = False

    def close(self) -> None:
        self.closed = True


def test_a_stream_that_nobody_reads_ends() -> None:
    texts, sent = Texts(), []

    async def content() -> AsyncIterator[bytes]:
        while True:
            yield b"data: {}\n\n"

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        sent.append(message["type"])
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()  # the buffer of the connection is full

    scope = {"type": "http", "asgi": {"spec_version": "2.3"}}
    asyncio.run(TimedStream(content(), texts, seconds=-0.9)(scope, receive, send))
    assert texts.closed and sent == ["http.response.start", "http.response.body"]
