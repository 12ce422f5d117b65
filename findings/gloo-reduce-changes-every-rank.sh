#!/usr/bin/env bash
# Guess: dist.reduce(tensor, dst) gives rank dst the result and leaves the tensor of every other rank as it was.
# Fact: over gloo the tensors of the others hold parts of the sum afterwards, another part in each place of the tensor. Reducing the same tensor
#   again adds those parts, and rank dst has a wrong sum, too: 4,321 below, where the ranks' own numbers would give 2,221. dist.gather
#   leaves the tensors alone.
# Why it matters: a loss, a count of tokens or a gradient norm that is reduced to rank 0 for the log is used on by all ranks, for a mean or a
#   decision to stop. Each has another number, of the right size, and a buffer that is reduced at every log without being filled anew grows
#   by itself. Reduce a copy, or use all_reduce.
# Seen with torch 2.13.0 (CPU build), four processes over gloo.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 numpy==2.1.3 2>/dev/null
cat > "$folder/reduce.py" <<'PY'
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as processes

RANKS = 4


def own(rank, length):
    return torch.full((length,), float(10**rank))


def work(rank, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)

    def show(name, values):
        seen = [None] * RANKS
        dist.all_gather_object(seen, sorted(set(map(int, values.tolist()))))
        if rank == 0:
            print(f"{name}:", "; ".join(f"rank {number} {' '.join(map(str, those))}" for number, those in enumerate(seen)))

    if rank == 0:
        print("torch", torch.__version__.split("+")[0])
    show("before", own(rank, 1))
    for length in (1, 1000):
        for destination in (0, 2):
            tensor = own(rank, length)
            dist.reduce(tensor, destination)
            show(f"{length} elements, reduced to rank {destination}", tensor)
    tensor = own(rank, 1)
    for _ in range(3):
        dist.reduce(tensor, 0)
        show("the same tensor again and again", tensor)
    tensor = own(rank, 1)
    dist.gather(tensor, [torch.empty(1) for _ in range(RANKS)] if rank == 0 else None, 0)
    show("gathered", tensor)
    dist.destroy_process_group()


if __name__ == "__main__":
    processes.spawn(work, (sys.argv[1],), RANKS)
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/reduce.py" "$folder/store" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
torch 2.13.0
before: rank 0 1; rank 1 10; rank 2 100; rank 3 1000
1 elements, reduced to rank 0: rank 0 1111; rank 1 1110; rank 2 1100; rank 3 1000
1 elements, reduced to rank 2: rank 0 1111; rank 1 1110; rank 2 1111; rank 3 1000
1000 elements, reduced to rank 0: rank 0 1111; rank 1 10 110 1110 1111; rank 2 100 1100 1101 1111; rank 3 1000 1001 1011 1111
1000 elements, reduced to rank 2: rank 0 1 11 111 1111; rank 1 10 110 1110 1111; rank 2 1111; rank 3 1000 1001 1011 1111
the same tensor again and again: rank 0 1111; rank 1 1110; rank 2 1100; rank 3 1000
the same tensor again and again: rank 0 4321; rank 1 3210; rank 2 2100; rank 3 1000
the same tensor again and again: rank 0 10631; rank 1 6310; rank 2 3100; rank 3 1000
gathered: rank 0 1; rank 1 10; rank 2 100; rank 3 1000
SEEN
