#!/usr/bin/env bash
# Guess: Triton's interpreter (TRITON_INTERPRET=1) is done with a kernel's tensors when the launch returns: memory of a temporary is free
#   when its last name goes, as after a launch on a GPU.
# Fact: it leaves the memory of every tensor argument in a reference cycle of its own. The Python tensors are gone, their storages stay until
#   the garbage collector runs, which knows nothing of their size: it counts objects, of which there are few.
# Why it matters: tests that run kernels in the interpreter hold all temporaries of earlier launches, and a peak of memory that is measured
#   there is too high by them: 10 % of the scratch tensors of our delta rule. Count allocations with launches that do nothing, or collect first.
# Seen with triton 3.7.1 and torch 2.13.0 on a CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 triton==3.7.1 numpy==2.1.3 setuptools==80.9.0 2>/dev/null
cat > "$folder/keeps.py" <<'PY'
import gc
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton
import triton.language as tl
from torch.multiprocessing.reductions import StorageWeakRef


@triton.jit
def double(x, out, n: tl.constexpr):
    place = tl.arange(0, n)
    tl.store(out + place, 2 * tl.load(x + place))


def launch():
    x, out = torch.ones(64), torch.empty(64)
    double[(1,)](x, out, 64)
    assert out.sum().item() == 128
    return [StorageWeakRef(t.untyped_storage()) for t in (x, out)]


gc.disable()
kept = [not storage.expired() for storage in launch()]
print("triton", triton.__version__, "torch", torch.__version__)
refs = [storage for _ in range(10) for storage in launch()]
print("storages alive of 10 launches with 2 tensors:", sum(not storage.expired() for storage in refs))
gc.collect()
left = sum(not storage.expired() for storage in refs)
print("after a collection:", left)
same = [not storage.expired() for storage in [StorageWeakRef((torch.ones(64) * 2).untyped_storage())]]
print("of a product of torch:", sum(same))
sys.exit(0 if all(kept) and left == 0 and not any(same) else "the behaviour has changed")
PY
"$folder/venv/bin/python" "$folder/keeps.py"
