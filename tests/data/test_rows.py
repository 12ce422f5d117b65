"""What the streaming library shares between processes: jobs side by side, killed ones, and what they leave."""

import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from multiprocessing import resource_tracker
from pathlib import Path

import pytest
import torch.distributed as dist

from sleeptrain.data import Data, Reader, Source
from tests.distributed import run

SHARED_MEMORY = Path("/dev/shm")
FORK = multiprocessing.get_context("fork")


def rows(reader, steps=20):
    return [[batch.ids.tolist() for batch in reader.next_step()] for _ in range(steps)]


def read(data, steps=20, **arguments):
    reader = Reader(data, micro=4, seed=5, **arguments)
    found = rows(reader, steps)
    reader.close()
    return found


def start(work):
    """A process that sends what `work(send)` returns; and the end of the pipe where it arrives."""
    receive, send = FORK.Pipe(duplex=False)
    process = FORK.Process(target=lambda: send.send(work(send)))
    process.start()
    return process, receive


def finish(started):
    results = [receive.recv() for _, receive in started]
    for process, _ in started:
        process.join()
        assert process.exitcode == 0
    return results


def names(reader=None):
    """What the library has in shared memory (of one reader), with what tells it from earlier files of this name."""
    prefix = "[0-9]*" if reader is None else f"{reader._rows._shm_prefix_int:06}"
    found = set()
    for path in SHARED_MEMORY.glob(f"{prefix}_*"):
        with contextlib.suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_ino))
    return found


@pytest.fixture(params=["in place", "fetched"])
def fresh(request, folder, tmp_path):
    """Shards that are not unpacked yet."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.mds"))
    return Data([Source(str(copy))], workers=1, cache=str(tmp_path / "cache") if request.param == "fetched" else None)


def test_jobs_side_by_side(data, fresh):
    expected = read(data)
    assert finish([start(lambda _: read(fresh)) for _ in range(5)]) == [expected] * 5


def test_killed_jobs_do_not_disturb_the_next(data, fresh):
    """Nor does what they leave, even where nobody is left to clean up behind them."""
    resource_tracker.ensure_running()  # ours, which lives on: theirs would remove the names

    def go_on(send):
        reader = Reader(fresh, micro=4, seed=5)
        rows(reader, 7)
        send.send(names(reader))
        signal.pause()

    started = [start(go_on) for _ in range(2)]
    left = [receive.recv() for _, receive in started]
    for process, _ in started:
        process.kill()
        process.join()
    try:
        assert all(len(found) >= 6 and found <= names() for found in left)
        assert read(fresh) == read(data)
    finally:
        for name, _ in sorted(set.union(*left)):
            (SHARED_MEMORY / name).unlink()
            resource_tracker.unregister(f"/{name}", "shared_memory")


def read_in_a_group(data):
    """What this process reads alone, which the first one does not; what it reads as one of two."""
    dist.init_process_group("gloo")
    rank, environment = dist.get_rank(), dict(os.environ)
    alone = read(data) if rank else None
    found = read(data, rank=rank, world=2, steps=10)
    assert environment.items() <= os.environ.items() and dist.get_world_size() == 2
    dist.destroy_process_group()
    return alone, found


def test_in_a_process_group(data):
    """The environment and the group stay as they are, and nobody needs to read at the same time."""
    expected = read(data)
    (_, first), (alone, second) = run(read_in_a_group, 2, data)
    assert alone == expected
    for step in range(10):
        dealt = [row for pair in zip(*first[step], *second[step], strict=True) for row in pair]
        assert dealt == [row for [batch] in expected[2 * step : 2 * step + 2] for row in batch]


def test_a_closed_reader_leaves_nothing_and_can_go_on(data):
    reader = Reader(data, micro=4, seed=5)
    found = rows(reader, 10)
    mine = names(reader)
    assert len(mine) >= 6
    reader.close()
    assert not mine & names()
    assert found + rows(reader, 10) == read(data)
    reader.close()


def test_many_epochs_keep_nothing_open(data):
    def opened():
        return len(os.listdir("/proc/self/fd"))

    reader = Reader(data, micro=50, seed=5)
    rows(reader, 6)
    before = opened()
    rows(reader, 40)
    assert reader.epoch == 23 and opened() == before
    reader.close()


SCRIPT = """
import sys
from pathlib import Path
from sleeptrain.data import Data, Reader, Source
from tests.distributed import run
reader = Reader(Data([Source(sys.argv[1])], workers=1), micro=4)
reader.next_step()
prefix = f"{reader._rows._shm_prefix_int:06}"
print(*(f"{path.name}={path.stat().st_ino}" for path in Path("/dev/shm").glob(f"{prefix}_*")), flush=True)
while sys.argv[2] == "forever":
    reader.next_step()
"""


def test_programs_that_end_leave_nothing(folder, tmp_path):
    """Neither at their end nor at Ctrl-C, which goes to the workers too."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(folder), end], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=os.environ | {"TMPDIR": str(tmp_path)}, start_new_session=True,
        )
        for end in ("once", "forever")
    ]  # fmt: skip
    try:
        once, forever = processes
        lines = [process.stdout.readline().split() for process in processes]
        mine, other = ({(name, int(inode)) for name, inode in (word.split("=") for word in line)} for line in lines)
        assert min(len(mine), len(other & names())) >= 6 and not mine & other
        os.killpg(forever.pid, signal.SIGINT)
        said = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert not (mine | other) & names() and not list(tmp_path.glob("sleeptrain-locks-*"))
    assert (once.returncode, said[0]) == (0, "")
    assert forever.returncode == -signal.SIGINT
    assert said[1].count("Traceback") == 1 and said[1].rstrip().endswith("KeyboardInterrupt")
