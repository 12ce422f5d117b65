"""The thread that computes: texts join a batch when a row is free, read a window at a time, write a token at a time, and leave."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sleeptrain.inference.continuation import Continuation, padded, write_token
from sleeptrain.inference.session import SleepSession
from sleeptrain.model.state import State
from sleeptrain.serve.errors import ApiError
from sleeptrain.serve.limits import Limits


@dataclass(frozen=True)
class TextProgress:
    """What happened to a text."""

    text: str = ""
    """What it gained."""
    finish: str | None = None
    """Why it ended: `stop` or `length`; None while it goes on."""
    state: State | None = None
    """The state after its end, if the job asked for it."""
    error: ApiError | None = None
    """Why it cannot go on."""


@dataclass(eq=False)
class TextJob:
    """A text to be continued."""

    prompt: Sequence[int]
    continuation: Continuation
    report: Callable[[TextProgress], None]
    """Called in the thread of the batch, last with `finish` or `error`, unless the job was cancelled."""
    deadline: float
    """On the clock of `time.monotonic`."""
    start: State | None = None
    """The state that the prompt continues; None at the start of a text."""
    keep_state: bool = False
    cancelled: threading.Event = field(default_factory=threading.Event)
    """Set by who no longer waits for the text; its row becomes free."""
    read: int = 0
    """Tokens of the prompt that were read."""


class BatchThread:
    """Computes jobs in batches. Reading and writing are two sessions; a row moves from one to the other when its prompt was read.

    In turn, every row that reads takes one window, and every row that writes one token: a long prompt delays others by a window
    at a time. Jobs wait for a row in the order of their arrival.
    """

    def __init__(self, empty: Callable[[], SleepSession], limits: Limits) -> None:
        """`empty` makes a session of one row."""
        self._limits, self._empty = limits, empty
        self._changed, self._stopped = threading.Condition(), False
        self._waiting: deque[TextJob] = deque()
        self._start = empty().state()
        self._reset()
        self._thread = threading.Thread(target=self._run, name="batch", daemon=True)

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after the current token; jobs that have not ended get an error."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def submit(self, jobs: Sequence[TextJob]) -> None:
        """Add all jobs or, where too many wait, none. Raises ApiError."""
        with self._changed:
            self._waiting = deque(job for job in self._waiting if not job.cancelled.is_set())
            if self._stopped or len(self._waiting) + len(jobs) > self._limits.waiting + max(
                0, self._limits.rows - self._rows()
            ):
                raise ApiError(503, "too many texts wait for this server; try again", "overloaded")
            self._waiting.extend(jobs)
            self._changed.notify()

    def _rows(self) -> int:
        return len(self._reading) + len(self._writing)

    def _reset(self) -> None:
        """Begin without any row."""
        self._reading: list[TextJob] = []
        self._writing: list[TextJob] = []
        self._reader, self._writer = self._empty(), self._empty()
        self._reader.keep([])
        self._writer.keep([])

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._waiting or self._rows())
                new = [
                    self._waiting.popleft() for _ in range(min(len(self._waiting), self._limits.rows - self._rows()))
                ]
                self._reading += new
                stopped, late = self._stopped, self._take_late()
            if stopped:
                self._fail([*self._reading, *self._writing, *late], ApiError(503, "the server stops", "stopped"))
                return
            self._fail(late, self._timeout())
            try:
                self._turn(new)
            except Exception as error:  # an error of the device must not end the server
                self._fail(
                    [*self._reading, *self._writing], ApiError(500, f"{type(error).__name__}: {error}", "failed")
                )
                self._reset()

    def _turn(self, new: Sequence[TextJob]) -> None:
        for job in new:
            self._reader.append(self._start if job.start is None else job.start)
        self._leave()
        if self._reading:
            self._read_windows()
        if self._writing:
            self._write_tokens()

    def _leave(self) -> None:
        """Free the rows of texts that nobody waits for, and of those that have no time left."""
        now = time.monotonic()
        late = [job for job in [*self._reading, *self._writing] if job.deadline < now and not job.cancelled.is_set()]
        gone = {id(job) for job in [*self._reading, *self._writing] if job.deadline < now or job.cancelled.is_set()}
        self._reading = _kept(
            self._reader, self._reading, [i for i, job in enumerate(self._reading) if id(job) not in gone]
        )
        self._writing = _kept(
            self._writer, self._writing, [i for i, job in enumerate(self._writing) if id(job) not in gone]
        )
        self._fail(late, self._timeout())

    def _take_late(self) -> list[TextJob]:
        """Remove texts from those that wait for a row: all where the thread stops, else those that have no time left."""
        now = time.monotonic()
        late = [job for job in self._waiting if self._stopped or (job.deadline < now and not job.cancelled.is_set())]
        if late:
            gone = {id(job) for job in late}
            self._waiting = deque(job for job in self._waiting if id(job) not in gone)
        return late

    def _timeout(self) -> ApiError:
        return ApiError(504, f"the text took more than {self._limits.seconds:g} seconds", "timeout")

    def _read_windows(self) -> None:
        """Read up to a window of every prompt; rows that have read all of theirs write from now on."""
        jobs, window = self._reading, self._reader.sleep.window
        parts = [job.prompt[job.read : job.read + window] for job in jobs]
        self._reader.prefill(*padded(parts, self._reader.logits.device))
        for job, part in zip(jobs, parts, strict=True):
            job.read += len(part)
        done = [i for i, job in enumerate(jobs) if job.read == len(job.prompt)]
        if done:
            self._writer.append(self._reader.rows(done))
            self._reading = _kept(self._reader, jobs, [i for i in range(len(jobs)) if i not in done])
            self._writing = [*self._writing, *(jobs[i] for i in done)]

    def _write_tokens(self) -> None:
        jobs, reports = self._writing, []
        texts = write_token(self._writer, [job.continuation for job in jobs])
        for i, (job, text) in enumerate(zip(jobs, texts, strict=True)):
            finish = job.continuation.finish
            state = self._writer.rows([i]) if finish and job.keep_state else None
            if text or finish:
                reports.append((job, TextProgress(text, finish, state)))
        self._writing = _kept(self._writer, jobs, [i for i, job in enumerate(jobs) if job.continuation.finish is None])
        for job, progress in reports:  # when rows are free for who hears of the end
            job.report(progress)

    def _fail(self, jobs: Sequence[TextJob], error: ApiError) -> None:
        for job in jobs:
            job.report(TextProgress(error=error))
            job.cancelled.set()


def _kept(session: SleepSession, jobs: list[TextJob], stay: Sequence[int]) -> list[TextJob]:
    """The jobs of the rows that stay; the session keeps these rows."""
    if len(stay) < len(jobs):
        session.keep(stay)
    return [jobs[i] for i in stay]
