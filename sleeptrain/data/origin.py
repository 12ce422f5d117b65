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
MOST_TEXT = 400
"""Characters of an error's text that a message has."""
HUB = "https://huggingface.co"
"""The Hugging Face Hub, unless HF_ENDPOINT names another address."""


class Origin:
    """Where the files of one source come from: HTTP, data sets of the Hugging Face Hub, which are read over HTTP, or anything that the
    storage classes of mosaicml-streaming read."""

    def __init__(self, root: str) -> None:
        self._root = root.rstrip("/")

    def url(self, name: str) -> str:
        """The URL or path of a file."""
        return f"{self._root}/{name}"

    def fetch(self, name: str, target: Path) -> None:
        """Download a file to `target`, which does not exist. Errors have any type, and leave partial files beside `target`."""
        if self._http is not None:
            hub = urlsplit(self._root).scheme == "hf"
            self._fetch_by_http(self._http, f"{web_address(self._root)}/{name}", target, hub)
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
        scheme = urlsplit(self._root).scheme
        if scheme not in ("http", "https", "hf"):
            return None
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.util import Retry

        session = requests.Session()
        if scheme == "hf":
            from huggingface_hub import get_token

            if token := get_token():  # requests sends it to no other host that the Hub names
                session.headers["Authorization"] = f"Bearer {token}"
        retries = Retry(ATTEMPTS - 1, backoff_factor=0.5, status_forcelist=BUSY, raise_on_status=False)
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retries))
        return session

    @staticmethod
    def _fetch_by_http(session: Any, url: str, target: Path, hub: bool) -> None:
        # Without "identity", a server may send .zstd files with an encoding that would be decoded on the way.
        with session.get(url, stream=True, timeout=TIMEOUT, headers={"Accept-Encoding": "identity"}) as response:
            if response.status_code == 404:
                raise FileNotFoundError(f"404 from {url}")
            if response.status_code in (401, 403) and hub:
                raise PermissionError(f"{response.status_code} from {url}; set HF_TOKEN to a token that may read it")
            response.raise_for_status()
            with target.open("wb") as file:
                for chunk in response.iter_content(CHUNK):
                    file.write(chunk)


def web_address(root: str) -> str:
    """The URL over HTTP of the folder at `root`: itself, or that of `hf://datasets/OWNER/NAME[@REVISION]/FOLDER`.

    Raises ValueError for another URL of the Hub.
    """
    if urlsplit(root).scheme != "hf":
        return root
    kind, owner, name, *folder = [*root.removeprefix("hf://").split("/"), "", ""]
    name, _, revision = name.partition("@")
    if kind != "datasets" or not owner or not name:
        raise ValueError(f"{root} is no data set of the Hub; write hf://datasets/OWNER/NAME/FOLDER")
    hub = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    return "/".join([hub, kind, owner, name, "resolve", revision or "main", *filter(None, folder)])


def reason(error: Exception) -> str:
    """An error of a storage client in one line: its type and text, in which clients tell much."""
    text = " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError):
        text = f"{text}; install the package that has it"
    return f"{type(error).__name__}: {text if len(text) <= MOST_TEXT else text[:MOST_TEXT] + ' ...'}"
