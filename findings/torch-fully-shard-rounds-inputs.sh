#!/usr/bin/env bash
# Guess: MixedPrecisionPolicy(param_dtype=torch.bfloat16) of fully_shard is about parameters, and perhaps about the activations that are multiplied by
#   them. What a block gets as float32 beside them, it sees as float32.
# Fact: every floating tensor among the arguments of each sharded module is cast to bf16, by position or by name, in lists and dictionaries too:
#   positions, cosines and sines of rotary positions, log decays, weights of a loss, targets. Integers and complex numbers pass.
#   DDP and torch.autocast cast none of them. cast_forward_inputs=False turns it off.
# Why it matters: a float position of 4,097 becomes 4,096, and rotary angles computed once in float32 and handed to all blocks have 3 digits left.
#   The model computes something else under FSDP2 than on one GPU under autocast, without it, or after export. Cast inside of the block.
# Seen with torch 2.13.0 (CPU build).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 numpy==2.1.3 2>/dev/null
cat > "$folder/inputs.py" <<'PY'
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, x, positions, rotary=None):
        shown = [("positions", positions[0]), *(("cos", cos) for cos in rotary["cos"]), ("ids", rotary["ids"]), ("complex", rotary["complex"])]
        print("   ", "; ".join(f"{name} {value.item():.6g} {str(value.dtype).removeprefix('torch.')}" for name, value in shown))
        return self.layer(x)


def run(name, model, **region):
    print(name)
    with torch.autocast("cpu", torch.bfloat16, enabled=bool(region)):
        model(torch.ones(1, 1), torch.tensor([4097.0]), rotary={
            "cos": [torch.tensor(0.998)], "ids": torch.tensor(4097), "complex": torch.tensor(0.998 + 0.0632j)})


print("torch", torch.__version__.split("+")[0])
run("DDP under autocast", DistributedDataParallel(Block()), autocast=True)
for name, options in (("fully_shard", {}), ("fully_shard, cast_forward_inputs=False", {"cast_forward_inputs": False})):
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, **options)
    model = fully_shard(Block(), mesh=mesh, mp_policy=policy)
    try:
        run(name, model)
    except RuntimeError as error:
        print("    then", str(error)[:38])
dist.destroy_process_group()
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/inputs.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
torch 2.13.0
DDP under autocast
    positions 4097 float32; cos 0.998 float32; ids 4097 int64; complex 0.998+0.0632j complex64
fully_shard
    positions 4096 bfloat16; cos 0.996094 bfloat16; ids 4097 int64; complex 0.998+0.0632j complex64
fully_shard, cast_forward_inputs=False
    positions 4097 float32; cos 0.998 float32; ids 4097 int64; complex 0.998+0.0632j complex64
    then mat1 and mat2 must have the same dtype
SEEN
