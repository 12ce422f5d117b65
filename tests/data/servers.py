"""Servers on localhost that hold shards: HTTP and S3, each in a process of its own, behind a proxy that can spoil answers."""

from __future__ import annotations

import http.client
import os
import re
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

Server = TypeVar("Server", bound=ThreadingHTTPServer)
BUCKET = "corpus"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}
Fault = Callable[[bytes], bytes]
"""Makes the body that is sent from the right one; the header keeps its length."""


class Proxy(ThreadingHTTPServer):
    """Passes requests on to a server, and spoils the next answers for the paths that `faults` names."""

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream.removeprefix("http://")
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        """Faults of the next GET requests, by the end of a path."""
        self.gets: list[str] = []
        """Paths of the GET requests so far."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def count(self, ending: str) -> int:
        """How many GET requests there were for the paths that end so."""
        return sum(path.endswith(ending) for path in self.gets)


class _Handler(BaseHTTPRequestHandler):
    server: Proxy

    def do_GET(self) -> None:
        connection = http.client.HTTPConnection(self.server.upstream)
        connection.request(self.command, self.path, headers=dict(self.headers))
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "server", "date"):
                self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            path = unquote(self.path.partition("?")[0])
            self.server.gets.append(path)
            faults = next((faults for end, faults in self.server.faults.items() if path.endswith(end) and faults), [])
            self.wfile.write(faults.pop(0)(body) if faults else body)

    do_HEAD = do_GET

    def log_message(self, *arguments: object) -> None:
        pass


def cut(body: bytes) -> bytes:
    """The first half; then the connection is closed."""
    return body[: len(body) // 2]


def flip(body: bytes) -> bytes:
    """One bit in the middle is another."""
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]


@contextmanager
def in_thread(server: Server) -> Iterator[Server]:
    """A server that answers from a thread until the block ends."""
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def http_server(folder: Path) -> Iterator[str]:
    """The URL at which Python's own server has the files of a folder."""
    yield from _served([sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", folder])


@contextmanager
def s3_server() -> Iterator[str]:
    """The endpoint of moto's S3 server, with an empty bucket."""
    for endpoint in _served([sys.executable, "-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]):
        _client(endpoint).create_bucket(Bucket=BUCKET)
        yield endpoint


def upload(endpoint: str, folder: Path, prefix: str) -> None:
    """Put the files of a folder into the bucket."""
    client = _client(endpoint)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            client.put_object(Bucket=BUCKET, Key=f"{prefix}/{path.relative_to(folder)}", Body=path.read_bytes())


def _client(endpoint: str) -> Any:
    import boto3

    keys = {name.lower(): value for name, value in CREDENTIALS.items() if name != "AWS_DEFAULT_REGION"}
    return boto3.client("s3", endpoint_url=endpoint, region_name=CREDENTIALS["AWS_DEFAULT_REGION"], **keys)


def _served(command: list[object]) -> Iterator[str]:
    """The address that a server prints once it listens."""
    server = subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ
    )
    assert server.stdout is not None
    try:
        address = None
        for line in server.stdout:
            if address := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        assert address is not None, f"{command} has ended"
        drain = threading.Thread(target=server.stdout.read, daemon=True)
        drain.start()
        yield address[0]
    finally:
        server.terminate()
        server.wait()
