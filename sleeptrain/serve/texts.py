"""The texts of one request, from the thread that computes them to the coroutine that sends them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial

from sleeptrain.inference.continuation import Continuation
from sleeptrain.model.state import State
from sleeptrain.serve.batch import BatchThread, TextJob, TextProgress
from sleeptrain.serve.errors import ApiError
from sleeptrain.serve.limits import Limits
from sleeptrain.serve.request import CompletionRequest, prompt_tokens
from sleeptrain.serve.served import Served
from sleeptrain.serve.sessions import SessionStore, StoredSession


@dataclass(frozen=True)
class Event:
    """Progress of the text `index` of a request."""

    index: int
    progress: TextProgress


class RequestTexts:
    """Submits the texts of a request and yields their progress; `close` gives rows and session back, however it ended."""

    def __init__(
        self, request: CompletionRequest, served: Served, batch: BatchThread, store: SessionStore, limits: Limits
    ) -> None:
        """Raises ApiError for a request that cannot be met; then nothing was submitted."""
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._store, self._jobs = store, list[TextJob]()
        self._state: State | None = None
        self.session: StoredSession | None = None if request.session is None else store.take(request.session)
        try:
            self._submit(request, served, batch, limits)
        except BaseException:
            self.close()
            raise

    def _submit(self, request: CompletionRequest, served: Served, batch: BatchThread, limits: Limits) -> None:
        session, count = self.session, request.count(limits)
        continued = session is not None and session.state is not None
        prompts = prompt_tokens(request, served.codec, served.vocab, continued, limits)
        read, longest = 0 if session is None else session.tokens, max(map(len, prompts))
        if read + longest + count > limits.session_tokens:
            message = f"{read:,} + {longest:,} + max_tokens = {count:,} tokens are above {limits.session_tokens:,}, the limit of a session"
            raise ApiError(400, message, "too_many_tokens", "prompt")
        loop, stops = asyncio.get_running_loop(), request.stops()
        for prompt in prompts:
            for i in range(request.n or 1):
                self._jobs.append(
                    TextJob(
                        prompt,
                        Continuation(served.codec, prompt, count, request.sampling(i), stops),
                        partial(self._report, loop, len(self._jobs)),
                        time.monotonic() + limits.seconds,
                        None if session is None else session.state,
                        keep_state=session is not None,
                    )
                )
        batch.submit(self._jobs)

    def _report(self, loop: asyncio.AbstractEventLoop, index: int, progress: TextProgress) -> None:
        """Called in the thread of the batch."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has stopped
            loop.call_soon_threadsafe(self._events.put_nowait, Event(index, progress))

    async def events(self) -> AsyncIterator[Event]:
        """The progress of all texts until they have ended. Raises ApiError where one cannot go on."""
        left = len(self._jobs)
        while left:
            event = await self._events.get()
            if event.progress.error is not None:
                raise event.progress.error
            if event.progress.finish is not None:
                left, self._state = left - 1, event.progress.state
            yield event

    @property
    def usage(self) -> dict[str, int]:
        """Tokens that were read and written."""
        read, written = (
            sum(len(job.prompt) for job in self._jobs),
            sum(len(job.continuation.tokens) for job in self._jobs),
        )
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    def close(self) -> None:
        """Free the rows of texts that have not ended, and release the session."""
        for job in self._jobs:
            job.cancelled.set()
        if self.session is not None:
            session, self.session = self.session, None
            self._store.release(session, self._state, self.usage["total_tokens"])


async def collect(texts: RequestTexts) -> tuple[Sequence[str], Sequence[str]]:
    """All texts of a request, and why each ended."""
    written: dict[int, str] = {}
    finish: dict[int, str] = {}
    async for event in texts.events():
        written[event.index] = written.get(event.index, "") + event.progress.text
        if event.progress.finish is not None:
            finish[event.index] = event.progress.finish
    return [written[i] for i in sorted(written)], [finish[i] for i in sorted(finish)]
