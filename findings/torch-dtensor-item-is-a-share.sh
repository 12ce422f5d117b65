#!/usr/bin/env bash
# Guess: a norm, a maximum or a sum of a DTensor, such as a gradient under FSDP2, is a number of the whole tensor. item() gives it, or an
#   error if the number is not there yet.
# Fact: item() of such a result gives the share of the rank that asks: each rank has another number, and nothing is said. full_tensor()
#   gives the number of the whole. The norm that clip_grad_norm_ returns is one of the whole already.
# Why it matters: logs of gradient norms by parameter show the shard of rank 0, at the size to be expected. A rank that skips a step or
#   stops by such a number does so alone, and the others wait for it in their next collective.
# Seen with torch 2.13.0 (CPU build), two processes over gloo.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 numpy==2.1.3 2>/dev/null
cat > "$folder/shares.py" <<'PY'
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

dist.init_process_group("gloo")
layer = torch.nn.Linear(1, 4, bias=False)
fully_shard(layer, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
(layer(torch.ones(1, 1)) * torch.tensor([3.0, 4.0, 6.0, 8.0])).sum().backward()
gradient = layer.weight.grad
values = {
    "norm": gradient.norm(), "max": gradient.max(), "sum": gradient.sum(), "mean": gradient.mean(),
    "clip_grad_norm_": torch.nn.utils.clip_grad_norm_(layer.parameters(), 1e9),
}
shares = [None, None]
dist.all_gather_object(shares, {name: round(value.item(), 2) for name, value in values.items()})
whole = {name: round(value.full_tensor().item(), 2) for name, value in values.items()}
if dist.get_rank() == 0:
    print("torch", torch.__version__.split("+")[0], "the gradient is 3, 4, 6, 8")
    for name in values:
        print(f"{name}: item() {shares[0][name]} on rank 0, {shares[1][name]} on rank 1; full_tensor() {whole[name]}")
dist.destroy_process_group()
PY
"$folder/venv/bin/python" -m torch.distributed.run --nproc-per-node 2 --standalone "$folder/shares.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
torch 2.13.0 the gradient is 3, 4, 6, 8
norm: item() 5.0 on rank 0, 10.0 on rank 1; full_tensor() 11.18
max: item() 4.0 on rank 0, 8.0 on rank 1; full_tensor() 8.0
sum: item() 7.0 on rank 0, 14.0 on rank 1; full_tensor() 21.0
mean: item() 3.5 on rank 0, 7.0 on rank 1; full_tensor() 5.25
clip_grad_norm_: item() 11.18 on rank 0, 11.18 on rank 1; full_tensor() 11.18
SEEN
