"""The folder in which a build writes, beside its destination: locked, and renamed when it is complete."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOG = logging.getLogger("sleep_data")


@contextmanager
def staging(out: Path, *, keep: bool) -> Iterator[Path]:
    """The staging folder of a build of `out`, one build at a time: another one waits until this one ends.

    `keep`: an error leaves the folder if anything in it is done, as a killed process does, so that the next build continues in it.
    Else it is removed, and a
    folder that a killed build left is emptied. The log says when a build waits, and where what is done is kept.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.parent / f".{out.name}.building"
    with _locked(out.parent / f".{out.name}.lock"):
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        try:
            yield folder
        except BaseException:
            if keep and _holds_work(folder):
                _LOG.warning("what is done is kept in %s; the same build continues with it", folder)
            else:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def _holds_work(folder: Path) -> bool:
    """Whether the next build could continue with what is there: tokens or shards, not only files that were begun, or their tables."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".partial", ".npz"))
    return any(path.stat().st_size for path in files)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock, which the kernel frees when the process ends. The file is removed with the lock."""
    told = False
    while True:
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told:
                    _LOG.warning("another process builds this folder; waiting until it ends (it holds %s)", path)
                    told = True
                fcntl.flock(file, fcntl.LOCK_EX)
            # Its holder may have removed the file while this process waited; then others lock a new one.
            try:
                current = os.path.samestat(os.fstat(file.fileno()), path.stat())
            except FileNotFoundError:
                continue
            if not current:
                continue
            try:
                yield
                return
            finally:
                path.unlink(missing_ok=True)


def publish(folder: Path, out: Path) -> None:
    """Rename a complete folder to its destination, after its content is on the disk."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    os.rename(folder, out)
