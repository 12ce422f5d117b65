#!/usr/bin/env bash
# Guess: independent jobs on one node can open a StreamingDataset at any time: the library looks for free names in shared
#   memory, and a job takes names that no other job has.
# Fact: looking and taking are two steps without a lock. Jobs that start at the same moment choose the same number, and all but
#   one of them end with an error. It is the usual case for a job array, whose tasks start together on a node.
# Why it matters: seeds and grids of small runs share nodes. sleeptrain draws the number at random instead, so that no scan and
#   no lock are needed.
# Seen with mosaicml-streaming 0.13.0 and torch 2.13.0 on Linux: of 80 datasets that 4 processes open 20 times together, 35 fail,
#   with FileExistsError for a name such as /000012_locals. A folder for temporary files in common does not help.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 mosaicml-streaming==0.13.0 2>/dev/null
cat > "$folder/jobs.py" <<'PY'
"""Each job is a process of its own, with its own folder for temporary files, as schedulers give them."""
import importlib.machinery
import multiprocessing
import os
import sys
import tempfile
import types
from pathlib import Path

JOBS, ROUNDS = 4, 20


def without_torchvision():
    """The library imports torchvision for image formats, which this data does not have."""
    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.datasets"):
        module = types.ModuleType(name)
        module.__path__, module.__file__ = [], __file__
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        for attribute in ("VisionDataset", "ToTensor", "Compose"):
            setattr(module, attribute, type(attribute, (), {}))
        sys.modules[name] = module
    transforms, root = sys.modules["torchvision.transforms"], sys.modules["torchvision"]
    root.transforms, root.datasets = transforms, sys.modules["torchvision.datasets"]
    transforms.functional = sys.modules["torchvision.transforms.functional"]
    transforms.functional.to_tensor = None


def job(number, folder, together, results):
    tempfile.tempdir = str(folder / str(number))
    Path(tempfile.tempdir).mkdir()
    from streaming import StreamingDataset

    failures, opened = [], []
    for _ in range(ROUNDS):
        together.wait()
        try:
            opened.append(StreamingDataset(local=str(folder / "data"), batch_size=1))
        except Exception as error:
            failures.append(f"{type(error).__name__}: {error}")
    results.put(failures)
    together.wait()


if __name__ == "__main__":
    without_torchvision()
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}.items():
        os.environ[name] = value
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    from streaming import MDSWriter

    folder = Path(sys.argv[1])
    with MDSWriter(out=str(folder / "data"), columns={"x": "int"}) as writer:
        for x in range(8):
            writer.write({"x": x})
    context = multiprocessing.get_context("fork")
    together, results = context.Barrier(JOBS), context.Queue()
    jobs = [context.Process(target=job, args=(i, folder, together, results)) for i in range(JOBS)]
    for process in jobs:
        process.start()
    failures = [line for _ in jobs for line in results.get()]
    for process in jobs:
        process.join()
    kinds = sorted({line.split(":")[0] for line in failures})
    print(f"{len(failures)} of {JOBS * ROUNDS} failed: {', '.join(kinds)}")
    for line in sorted(set(failures))[:3]:
        print(" ", line)
    raise SystemExit(0 if failures else "every job opened its data: the behaviour has changed")
PY
PYTHONWARNINGS=ignore "$folder/venv/bin/python" "$folder/jobs.py" "$folder"
