"""The HTTP server in this process, from the first signal handler to the last closed connection."""

from __future__ import annotations

import signal
import socket
import sys

import uvicorn
from fastapi import FastAPI


class StoppableServer(uvicorn.Server):
    """A server that also shuts down in order where it is told to stop before it has started."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and close again if a signal has come meanwhile; uvicorn then only returns."""
        await super().startup(sockets=sockets)
        if self.should_exit and self.started:
            await self.shutdown(sockets=sockets)


def serve_until_stopped(app: FastAPI, listener: socket.socket, ready: str, grace: int) -> None:
    """Print the line `ready`, and answer requests until SIGINT or SIGTERM, which is the normal end.

    grace       seconds that running requests have then
    """
    server = StoppableServer(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=grace, lifespan="on"))

    def stop(*_: object) -> None:
        server.should_exit = True

    # The server has handlers of its own while it runs, and raises the signal again when it is done. These are there before, so that
    # no signal after the line is lost, and afterwards.
    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        print(ready, file=sys.stderr, flush=True)
        server.run(sockets=[listener])
    finally:
        listener.close()
        for number, handler in previous.items():
            signal.signal(number, handler)
