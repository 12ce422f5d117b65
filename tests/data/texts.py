"""Text for tests, built in several shards of several blocks."""

from sleep_data.build import build
from sleep_data.text import Text

BLOCK = 96
"""Tokens of a block."""


def build_text(folder, documents):
    """The folder of shards of these documents, which are written to files in `folder`."""
    for i, document in enumerate(documents):
        (folder / f"{i:03}.txt").write_bytes(document)
    out = folder / "out"
    build(Text(paths=(str(folder),), block=BLOCK, holdout=8), out, {"train": None, "test": None}, shard_bytes=2000)
    assert len(list((out / "train").glob("*.zstd"))) > 2
    return str(out)
