"""Resources that the streaming library shares between processes: concurrent jobs, killed jobs, and their leftovers."""

import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
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
    steps_read = rows(reader, steps)
    reader.close()
    return steps_read


def start(work):
    """A process that sends the result of `work(send)`, and the end of the pipe that receives it."""
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


def shared_memory(reader=None):
    """Names and inodes of the shared memory of the library, for one reader or all; the inode identifies a reused name."""
    prefix = "[0-9]*" if reader is None else f"{reader._rows._shm_prefix_int:06}"
    blocks = set()
    for path in SHARED_MEMORY.glob(f"{prefix}_*"):
        with contextlib.suppress(FileNotFoundError):
            blocks.add((path.name, path.stat().st_ino))
    return blocks


@pytest.fixture(params=["in place", "downloaded"])
def fresh(request, folder, tmp_path):
    """Shards that are not decompressed yet."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.mds"))
    return Data(
        [Source(str(copy))], workers=1, cache=str(tmp_path / "cache") if request.param == "downloaded" else None
    )


def test_concurrent_jobs(data, fresh):
    expected = read(data)
    assert finish([start(lambda _: read(fresh)) for _ in range(5)]) == [expected] * 5


def test_jobs_with_own_temporary_folders_open_the_data_at_once(data, tmp_path, monkeypatch):
    """As jobs of a scheduler that share a node: no lock file in a temporary folder is common to them."""
    at_once = FORK.Barrier(4)

    def open_often(folder):
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        readers = []
        for _ in range(20):
            at_once.wait(timeout=60)
            readers.append(Reader(data, micro=4, seed=5))
            readers[-1].next_step()
        names = {name.split("_")[0] for reader in readers for name, _ in shared_memory(reader)}
        for reader in readers:
            reader.close()
        return names

    folders = [tmp_path / str(job) for job in range(4)]
    for folder in folders:
        folder.mkdir()
    names = finish([start(lambda _, folder=folder: open_often(folder)) for folder in folders])
    assert [len(job) for job in names] == [20] * 4 and len(set.union(*names)) == 80
    assert not any(list(folder.iterdir()) for folder in folders)


def test_killed_jobs_do_not_disturb_the_next(data, fresh):
    """Their shared memory remains, as after a crash of the whole job, and does not disturb the next one either."""
    resource_tracker.ensure_running()  # of this process: trackers of the killed processes would remove the shared memory

    def read_until_killed(send):
        reader = Reader(fresh, micro=4, seed=5)
        rows(reader, 7)
        send.send(shared_memory(reader))
        signal.pause()

    started = [start(read_until_killed) for _ in range(2)]
    leftovers = [receive.recv() for _, receive in started]
    for process, _ in started:
        process.kill()
        process.join()
    try:
        assert all(len(blocks) >= 6 and blocks <= shared_memory() for blocks in leftovers)
        assert read(fresh) == read(data)
    finally:
        for name, _ in sorted(set.union(*leftovers)):
            (SHARED_MEMORY / name).unlink()
            resource_tracker.unregister(f"/{name}", "shared_memory")


def read_in_a_group(data):
    """Steps read outside the group (None on rank 0), and steps read as one of two ranks."""
    dist.init_process_group("gloo")
    rank, environment = dist.get_rank(), dict(os.environ)
    alone = read(data) if rank else None
    steps = read(data, rank=rank, world=2, steps=10)
    assert environment.items() <= os.environ.items() and dist.get_world_size() == 2
    dist.destroy_process_group()
    return alone, steps


def test_in_a_process_group(data):
    """Environment and group do not change, and a rank reads while the other one does not."""
    expected = read(data)
    (_, first), (alone, second) = run(read_in_a_group, 2, data)
    assert alone == expected
    for step in range(10):
        interleaved = [row for pair in zip(*first[step], *second[step], strict=True) for row in pair]
        assert interleaved == [row for [batch] in expected[2 * step : 2 * step + 2] for row in batch]


def test_a_closed_reader_releases_shared_memory_and_can_continue(data):
    reader = Reader(data, micro=4, seed=5)
    steps = rows(reader, 10)
    blocks = shared_memory(reader)
    assert len(blocks) >= 6
    reader.close()
    assert not blocks & shared_memory()
    assert steps + rows(reader, 10) == read(data)
    reader.close()


def test_epochs_do_not_leak_file_descriptors(data):
    def open_files():
        return len(os.listdir("/proc/self/fd"))

    reader = Reader(data, micro=50, seed=5)
    rows(reader, 6)
    before = open_files()
    rows(reader, 40)
    assert reader.seen()["epochs_by_source"] == {"r110": 23.0} and open_files() == before
    reader.close()


SCRIPT = """
import signal
import sys
from pathlib import Path
from sleeptrain.data import Data, Reader, Source
from tests.distributed import run
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
reader = Reader(Data([Source(sys.argv[1])], workers=1), micro=4)
reader.next_step()
prefix = f"{reader._rows._shm_prefix_int:06}"
print(*(f"{path.name}={path.stat().st_ino}" for path in Path("/dev/shm").glob(f"{prefix}_*")), flush=True)
while sys.argv[2] == "forever":
    reader.next_step()
"""


@pytest.mark.slow
def test_programs_leave_no_shared_memory(folder, tmp_path):
    """Neither at their end nor after Ctrl-C, which the workers receive as well."""
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
        first, second = ({(name, int(inode)) for name, inode in (word.split("=") for word in line)} for line in lines)
        assert min(len(first), len(second & shared_memory())) >= 6 and not first & second
        os.killpg(forever.pid, signal.SIGINT)
        errors = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert not (first | second) & shared_memory() and not list(tmp_path.glob("sleeptrain-locks-*"))
    assert (once.returncode, errors[0]) == (0, "")
    assert forever.returncode == -signal.SIGINT
    assert errors[1].count("Traceback") == 1 and errors[1].rstrip().endswith("KeyboardInterrupt")
