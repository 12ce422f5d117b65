"""mosaicml-streaming's stream over one source: shards that several processes and jobs can make ready at once.

Imports the library: import this module inside functions only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from sleep_data.patches.torchvision import ensure_torchvision

ensure_torchvision()

from streaming import Stream  # noqa: E402

from sleeptrain.data.sources import Opened  # noqa: E402


class Shards(Stream):
    """The shards of one source, fetched and unpacked by one process at a time.

    To the dataset it is a local stream even where shards are fetched: the library refuses two jobs that fetch to one folder,
    and takes for a job what a killed one has left.
    """

    def __init__(self, source: Opened, split: str, weighted: bool) -> None:
        options: dict[str, Any] = {"local": source.folder, "split": split, "validate_hash": "xxh64"}
        super().__init__(**options, proportion=source.proportion if weighted else None)
        options |= {"keep_zip": source.remote is None, "download_retry": 2, "download_timeout": 300}
        self.origin = Stream(remote=source.remote, **options)
        self.failures: dict[Path, str] = {}
        """Why shards could not be made ready in this process, by the path of the unpacked shard."""

    def set_up_local(self, shards: list[Any], cache_usage_per_shard: np.ndarray) -> None:
        """Say which shards are unpacked. Half a shard, such as a power failure leaves, is removed."""
        for i, shard in enumerate(shards):
            raw = unpacked(shard)
            whole = _whole(raw, shard.raw_data.bytes)
            cache_usage_per_shard[i] = shard.raw_data.bytes if whole else 0
            if raw.is_file() and not whole:
                raw.unlink(missing_ok=True)

    def prepare_shard(self, shard: Any) -> int:
        """Fetch, verify and unpack a shard. A failure is kept, not raised: other workers would wait for ever."""
        raw = unpacked(shard)
        if raw in self.failures:
            return 0
        try:
            with FileLock(raw.with_name(f".{raw.name}.lock")):
                if not _whole(raw, shard.raw_data.bytes):  # nobody else did it while we waited
                    raw.unlink(missing_ok=True)
                    packed = raw.with_name((shard.zip_data or shard.raw_data).basename)
                    if self.origin.remote is None and not packed.exists():  # the library would try again and again
                        self.failures[raw] = f"shard {packed} is missing; build or copy the data again"
                    else:
                        self.origin.prepare_shard(shard)
        except Exception as error:  # whatever the storage raises, the user needs to know which shard
            self.failures[raw] = self.damage(raw, error)
        return 0

    def damage(self, raw: Path, error: Exception) -> str:
        """What to tell the user of a shard that cannot be read."""
        if "Checksum" in str(error):
            return f"shard {raw} is damaged (its checksum does not fit); build or copy the data again"
        origin = f" from {self.origin.remote}" if self.origin.remote else ""
        return f"shard {raw} cannot be read{origin} ({type(error).__name__}: {error}); build or copy the data again"


def unpacked(shard: Any) -> Path:
    """Where the unpacked file of a shard belongs."""
    return Path(shard.dirname, shard.split, shard.raw_data.basename)


def _whole(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
