#!/usr/bin/env bash
# Guess: functions of a reduced DTensor have the value that they have for the whole tensor, or torch gathers first, as it does for sqrt of a sum.
# Fact: two kinds of results keep the shares of the ranks apart and let a function through that does not fit them. any() that becomes a number,
#   by float(), int() or in a product, is how many ranks have an element that is true. The sum of norms over a sharded axis,
#   norm(dim=0).sum(), adds the norms within each rank first and takes the root of the sum of their squares. Nothing is raised. all(), a mean of norms and a Boolean any() are right.
# Why it matters: a flag such as "not finite anywhere" that is added to a count, or multiplies a loss, is 8 on 8 ranks and 1 on one, and a
#   penalty of the norms of columns changes with the number of ranks: a run on one GPU shows neither.
# Seen with torch 2.13.0 (CPU build), two processes over gloo.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 numpy==2.1.3 2>/dev/null
cat > "$folder/shares.py" <<'PY'
import torch
import torch.distributed as dist
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

dist.init_process_group("gloo")
whole = torch.tensor([[3.0, 1.0], [0.0, 2.0], [4.0, 2.0], [0.0, 4.0]])
rows = distribute_tensor(whole, init_device_mesh("cpu", (2,)), [Shard(0)])
functions = {
    "any()": lambda x: (x > 2).any(),
    "any().float()": lambda x: (x > 2).any().float(),
    "any() * 10": lambda x: (x > 2).any() * 10,
    "all().float()": lambda x: (x >= 0).all().float(),
    "norm(dim=0)": lambda x: x.norm(dim=0),
    "norm(dim=0).sum()": lambda x: x.norm(dim=0).sum(),
    "norm(dim=0).mean()": lambda x: x.norm(dim=0).mean(),
    "sum(0).sqrt().sum()": lambda x: x.sum(0).sqrt().sum(),
}
if dist.get_rank() == 0:
    print("torch", torch.__version__.split("+")[0])
for name, function in functions.items():
    expected, found = function(whole), function(rows).full_tensor()
    if dist.get_rank() == 0:
        print(f"{name}: whole {expected.tolist()}, divided by rows {found.tolist()}")
dist.barrier()
dist.destroy_process_group()
PY
"$folder/venv/bin/python" -m torch.distributed.run --nproc-per-node 2 --standalone "$folder/shares.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
torch 2.13.0
any(): whole True, divided by rows True
any().float(): whole 1.0, divided by rows 2.0
any() * 10: whole 10, divided by rows 20
all().float(): whole 1.0, divided by rows 1.0
norm(dim=0): whole [5.0, 5.0], divided by rows [5.0, 5.0]
norm(dim=0).sum(): whole 10.0, divided by rows 9.959592819213867
norm(dim=0).mean(): whole 5.0, divided by rows 5.0
sum(0).sqrt().sum(): whole 5.645750999450684, divided by rows 5.645750999450684
SEEN
