"""Servers on localhost that answer as Google Cloud Storage and the Hugging Face Hub do, to what their official clients ask for a file.

Both refuse requests without the token of an account that the test has made.
"""

from __future__ import annotations

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

TOKEN = "token-of-the-test"
GOOGLE_FILE = r"/download/storage/v1/b/corpus/o/(?P<name>[^/?]+)\?alt=media"
HUB_FILE = r"/datasets/someone/corpus/resolve/(?P<revision>[^/]+)/(?P<name>[^?]+)"


class CloudServer(ThreadingHTTPServer):
    """Has the files of a folder under paths that match a pattern, with their name in the group `name`."""

    def __init__(self, folder: Path, pattern: str) -> None:
        super().__init__(("127.0.0.1", 0), _Files)
        self.folder, self.pattern = folder, re.compile(pattern)
        self.revisions: set[str] = set()
        """Revisions that were asked for."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Files(BaseHTTPRequestHandler):
    server: CloudServer

    def do_GET(self) -> None:
        found = self.server.pattern.fullmatch(self.path)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, b"who are you?")
        if found is None:
            return self._answer(400, b"this is not asked for as the service expects")
        self.server.revisions.add(found.groupdict().get("revision", ""))
        path = self.server.folder / unquote(found["name"])
        if not path.is_file():
            return self._answer(404, b"not here")
        content = path.read_bytes()
        first = re.fullmatch(r"bytes=(\d+)-.*", self.headers.get("Range", ""))
        start = int(first[1]) if first else 0
        self._answer(206 if first else 200, content[start:], f"bytes {start}-{len(content) - 1}/{len(content)}")

    def do_POST(self) -> None:
        """The exchange of a signed request of a service account for a token."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if b"assertion=" not in body:
            return self._answer(400, b"no assertion")
        self._answer(200, json.dumps({"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"}).encode())

    def _answer(self, status: int, body: bytes, part: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.md5(body).hexdigest()}"')
        if part:
            self.send_header("Content-Range", part)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


def service_account(server: CloudServer, path: Path) -> Path:
    """Write the key file of a service account whose tokens the server gives out."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {
        "type": "service_account", "project_id": "project", "client_email": "test@localhost", "private_key": key.decode(),
        "private_key_id": "1", "token_uri": f"{server.url}/token",
    }  # fmt: skip
    path.write_text(json.dumps(account))
    return path
