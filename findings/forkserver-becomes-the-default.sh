#!/usr/bin/env bash
# Guess: multiprocessing.get_context("forkserver").Process(...) chooses how this process starts, and nothing else; inside it the default
#   is that of the platform, as in its parent. A torch DataLoader in it forks its workers, as it does everywhere on Linux.
# Fact: in such a process the default start method is "forkserver" itself, although its parent still has "fork". Its DataLoader starts
#   workers by another fork server: datasets and worker_init_fn must be picklable, and os.getppid() in a worker is not the process that
#   reads from it.
# Why it matters: a worker that asks Linux for a signal at the death of its parent (PR_SET_PDEATHSIG), and checks that its parent is
#   alive by getppid, ends at once: "DataLoader worker exited unexpectedly". Python 3.14 makes the fork server the default everywhere.
# Seen with Python 3.11 and torch 2.13.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 2>/dev/null
cat > "$folder/method.py" <<'PY'
import multiprocessing
import os
import sys

import torch
from torch.utils.data import DataLoader, Dataset


class Parents(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return os.getppid()


def child(pipe):
    (batch,) = DataLoader(Parents(), num_workers=1)
    pipe.send((multiprocessing.get_start_method(), int(batch) == os.getpid()))


def seen(method):
    context = multiprocessing.get_context(method)
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(send,))
    process.start()
    result = receive.recv()
    process.join()
    return result


if __name__ == "__main__":
    multiprocessing.set_start_method("fork")  # the default on Linux before Python 3.14
    forked, served = seen("fork"), seen("forkserver")
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}; default of this process: {multiprocessing.get_start_method()}")
    print(f"in a forked child: default {forked[0]}, the DataLoader's worker is its child: {forked[1]}")
    print(f"in a child of a fork server: default {served[0]}, the DataLoader's worker is its child: {served[1]}")
    assert forked == ("fork", True) and served == ("forkserver", False)
PY
cd "$folder" && OMP_NUM_THREADS=1 "$folder/venv/bin/python" method.py 2>/dev/null
