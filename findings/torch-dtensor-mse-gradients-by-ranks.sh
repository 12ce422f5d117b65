#!/usr/bin/env bash
# Guess: a mean over a DTensor that is divided by rows has the value and the gradient of the same mean over the whole tensor, whichever function
#   takes it: mean(), cross_entropy and mse_loss agree about that.
# Fact: mse_loss, smooth_l1_loss, huber_loss and soft_margin_loss give the right value and the gradient times the number of ranks: in backward each
#   rank divides by its own rows. mean(), l1_loss, cross_entropy and reduction="sum" are right. If the rows do not divide by the ranks, their
#   values are wrong, too. Nothing is raised.
# Why it matters: a term of the loss such as a distillation of states, an auxiliary head or a z-loss by mse_loss weighs 8 times as much on 8 ranks under
#   sequence or tensor parallelism, and the log shows the value that one rank has. Write ((x - y) ** 2).mean().
# Seen with torch 2.13.0 (CPU build), two processes over gloo.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 numpy==2.1.3 2>/dev/null
cat > "$folder/losses.py" <<'PY'
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (dist.get_world_size(),))


def labels(x):
    zeros = torch.zeros(len(x), dtype=torch.long)
    return distribute_tensor(zeros, mesh, [Shard(0)]) if hasattr(x, "placements") else zeros


LOSSES = {
    "(x * x).mean()": lambda x: (x * x).mean(),
    "l1_loss": lambda x: F.l1_loss(x, torch.zeros_like(x)),
    "cross_entropy": lambda x: F.cross_entropy(x, labels(x)),
    "mse_loss": lambda x: F.mse_loss(x, torch.zeros_like(x)),
    "smooth_l1_loss": lambda x: F.smooth_l1_loss(x, torch.zeros_like(x)),
    "huber_loss": lambda x: F.huber_loss(x, torch.zeros_like(x)),
    "soft_margin_loss": lambda x: F.soft_margin_loss(x, torch.ones_like(x)),
    "mse_loss, reduction='sum' / count": lambda x: F.mse_loss(x, torch.zeros_like(x), reduction="sum") / x.numel(),
}
if dist.get_rank() == 0:
    print("torch", torch.__version__.split("+")[0], "two ranks")
for rows, names in ((8, tuple(LOSSES)), (5, ("(x * x).mean()", "mse_loss"))):
    for name in names:
        plain = torch.arange(1.0, 2 * rows + 1).view(rows, 2).div(10).requires_grad_()
        sharded = distribute_tensor(plain.detach(), mesh, [Shard(0)]).requires_grad_()
        whole, value = LOSSES[name](plain), LOSSES[name](sharded)
        whole.backward()
        value.backward()
        factors = sharded.grad.full_tensor() / plain.grad
        shown = f"{whole.item():.3f}, of the DTensor {value.full_tensor().item():.3f}, its gradient times {factors[-1, -1].item():.2f}"
        if dist.get_rank() == 0:
            print(f"{rows} rows, {name}: {shown}")
dist.destroy_process_group()
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -m torch.distributed.run --nproc-per-node 2 --standalone "$folder/losses.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
torch 2.13.0 two ranks
8 rows, (x * x).mean(): 0.935, of the DTensor 0.935, its gradient times 1.00
8 rows, l1_loss: 0.850, of the DTensor 0.850, its gradient times 1.00
8 rows, cross_entropy: 0.744, of the DTensor 0.744, its gradient times 1.00
8 rows, mse_loss: 0.935, of the DTensor 0.935, its gradient times 2.00
8 rows, smooth_l1_loss: 0.439, of the DTensor 0.439, its gradient times 2.00
8 rows, huber_loss: 0.439, of the DTensor 0.439, its gradient times 2.00
8 rows, soft_margin_loss: 0.378, of the DTensor 0.378, its gradient times 2.00
8 rows, mse_loss, reduction='sum' / count: 0.935, of the DTensor 0.935, its gradient times 1.00
5 rows, (x * x).mean(): 0.385, of the DTensor 0.385, its gradient times 1.00
5 rows, mse_loss: 0.385, of the DTensor 0.443, its gradient times 2.50
SEEN
