#!/usr/bin/env bash
# Guess: all_reduce with MAX or MIN treats a NaN as torch.maximum does: one rank's NaN is the result on every rank. Or it never does.
# Fact: over gloo the result depends on the rank that has the NaN and on the place in the tensor. Of four ranks, each with a tensor of
#   64 equal elements, a NaN of rank 0 comes through in the first element and is lost in the last; of rank 3 it is the other way
#   round; of ranks 1 and 2 it is lost in both. All ranks get the same result, and nothing is raised.
# Why it matters: "is the gradient or the loss finite anywhere?" is often asked by a MAX of the values themselves. A run on CPUs goes on
#   with NaN on one rank. A MAX of a flag (not isfinite) is right, and so is a sum.
# Seen with torch 2.13.0 (CPU build).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 numpy==2.1.3 2>/dev/null
cat > "$folder/reduce.py" <<'PY'
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

WORLD = 4


def work(rank: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    for name, op in (("MAX", dist.ReduceOp.MAX), ("MIN", dist.ReduceOp.MIN)):
        for owner in range(WORLD):
            x = torch.full((64,), float("nan") if rank == owner else float(rank))
            flag = (~torch.isfinite(x)).any().int()
            dist.all_reduce(x, op)
            dist.all_reduce(flag, dist.ReduceOp.MAX)
            gathered = [torch.empty_like(x) for _ in range(WORLD)]
            dist.all_gather(gathered, x)
            assert all(torch.equal(one.isnan(), x.isnan()) for one in gathered)
            if rank == 0:
                print(f"{name}, NaN on rank {owner}: element 0 {x[0].item()}, element 63 {x[63].item()}, MAX of a flag {flag.item()}")
    dist.barrier()


if __name__ == "__main__":
    print("torch", torch.__version__)
    multiprocessing.spawn(work, (sys.argv[1],), WORLD)
PY
"$folder/venv/bin/python" "$folder/reduce.py" "$folder/store" 2>/dev/null | tee "$folder/output"
for operation in MAX MIN; do
    grep -q "^$operation, NaN on rank 0: element 0 nan, element 63 3.0, MAX of a flag 1" "$folder/output"
    grep -q "^$operation, NaN on rank 1: element 0 0.0, element 63 [03].0, MAX of a flag 1" "$folder/output"
    grep -q "^$operation, NaN on rank 3: element 0 [02].0, element 63 nan, MAX of a flag 1" "$folder/output"
done
