"""Downloads of the files of a source, from its URL or folder."""

from __future__ import annotations

import os
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

TIMEOUT = 60.0
"""Seconds without an answer after which a request has failed."""
ATTEMPTS = 4
"""Requests for one file over HTTP while the server cannot be reached or is busy; the pauses between them double, from half a second."""
BUSY = (429, 500, 502, 503, 504)
"""Statuses of HTTP that ask for another attempt."""
CHUNK = 1 << 20


class Origin:
    """Where the files of one source come from: HTTP, or anything that the storage classes of mosaicml-streaming read."""

    def __init__(self, root: str) -> None:
        self._root = root.rstrip("/")

    def url(self, name: str) -> str:
        """The URL or path of a file."""
        return f"{self._root}/{name}"

    def fetch(self, name: str, target: Path) -> None:
        """Download a file to `target`, which does not exist. Errors have any type, and leave partial files beside `target`."""
        if self._http is not None:
            self._fetch_by_http(self._http, self.url(name), target)
        else:
            self._storage.download(self.url(name), str(target), TIMEOUT)

    def read(self, name: str) -> bytes:
        """Download a small file. Errors have any type."""
        with tempfile.TemporaryDirectory(prefix="sleeptrain-") as folder:
            target = Path(folder, os.path.basename(name))
            self.fetch(name, target)
            return target.read_bytes()

    @cached_property
    def _storage(self) -> Any:
        from sleep_data.patches.streaming_import import import_streaming

        import_streaming()
        from streaming.base.storage.download import CloudDownloader

        return CloudDownloader.get(self._root)

    @cached_property
    def _http(self) -> Any:
        """A session of HTTP; None for other schemes."""
        if urlsplit(self._root).scheme not in ("http", "https"):
            return None
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.util import Retry

        session = requests.Session()
        retries = Retry(ATTEMPTS - 1, backoff_factor=0.5, status_forcelist=BUSY, raise_on_status=False)
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retries))
        return session

    @staticmethod
    def _fetch_by_http(session: Any, url: str, target: Path) -> None:
        # Without "identity", a server may send .zstd files with an encoding that would be decoded on the way.
        with session.get(url, stream=True, timeout=TIMEOUT, headers={"Accept-Encoding": "identity"}) as response:
            if response.status_code == 404:
                raise FileNotFoundError(f"404 from {url}")
            response.raise_for_status()
            with target.open("wb") as file:
                for chunk in response.iter_content(CHUNK):
                    file.write(chunk)
