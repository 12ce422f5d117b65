#!/usr/bin/env bash
# Guess: torch.set_flush_denormal(True) is a setting of the process: from then on, every operator on a CPU takes numbers too small for the
#   normal range of float32 as 0.
# Fact: it sets a flag of the processor for the calling thread. Threads of the pool that torch divides operators over take over the flag when
#   they start, and keep theirs. If an operator has run on two threads before, half of a large result is flushed and half is not, and so it
#   stays after set_flush_denormal(False) for the other half. A result depends on the number of threads and on what ran before.
# Why it matters: states that decay token by token end in denormal numbers, on which CPUs are slow, and this switch is the cure that is
#   named for it. Set it before the first large operator, and in each thread and data worker of its own, or a run with one thread and a run
#   with two give different numbers.
# Seen with torch 2.13.0 (CPU build).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 numpy==2.1.3 2>/dev/null
cat > "$folder/flush.py" <<'PY'
import sys

import torch

COUNT = 1 << 20


def flushed(threads: int) -> str:
    """Which part of a product of 1e-38 and 0.1, which is denormal, is 0."""
    torch.set_num_threads(threads)
    return f"{(values * 0.1 == 0).double().mean().item():.0%}"


values, switch = torch.full((COUNT,), 1e-38), torch.set_flush_denormal
torch.set_num_threads(2)
if sys.argv[1] == "late":
    values * 0.1
print(sys.argv[1], "on:", switch(True), "flushed with two threads:", flushed(2), "with one:", flushed(1))
switch(False)
print(sys.argv[1], "off:", "flushed with two threads:", flushed(2), "with one:", flushed(1))
PY
python() { OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$@" 2>/dev/null; }
{
  python -c 'import torch; print("torch", torch.__version__.split("+")[0])'
  python "$folder/flush.py" early
  python "$folder/flush.py" late
} | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
torch 2.13.0
early on: True flushed with two threads: 100% with one: 100%
early off: flushed with two threads: 50% with one: 0%
late on: True flushed with two threads: 50% with one: 100%
late off: flushed with two threads: 0% with one: 0%
SEEN
