#!/usr/bin/env bash
# Guess: `zero_optimization.reduce_bucket_size` limits the messages in which DeepSpeed reduces gradients at ZeRO 1.
# Fact: with bf16 parameters and float32 accumulation, ZeRO 1 is another optimizer (BF16_Optimizer), which does not read the key. It
#   all-reduces the flat gradient of a parameter group in one message of any size, after backward; several groups are first copied
#   into one message while they have less than 500 million elements together. In fp32 the key holds.
# Why it matters: who lowers the key to bound the memory or the latency of the reduction changes nothing, and none of the reduction
#   overlaps with backward. A 7B model sends one message of 26 GB a step. A planner must count the copy only below 500 million elements.
# Seen with deepspeed 0.19.8 and torch 2.13.0 on a CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 deepspeed==0.19.8 2>/dev/null
cat > "$folder/buckets.py" <<'PY'
import os
import sys

import torch

os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
import deepspeed
import deepspeed.ops
from deepspeed.comm.torch import TorchBackend

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else a C++ operator is compiled first
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/rendezvous", rank=0, world_size=1)
deepspeed.comm.init_distributed(auto_mpi_discovery=False, verbose=False)
BUCKET, LAYERS, WIDTH = 2000, 6, 30
messages = []
for name in ("all_reduce", "reduce"):
    original = getattr(TorchBackend, name)

    def recorded(self, tensor, *args, original=original, **kwargs):
        messages.append(tensor.numel())
        return original(self, tensor, *args, **kwargs)

    setattr(TorchBackend, name, recorded)


def largest(bf16: bool) -> int:
    """Elements of the largest message of a backward."""
    model = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
    config = {
        "train_micro_batch_size_per_gpu": 1, "zero_allow_untested_optimizer": True, "bf16": {"enabled": bf16},
        "zero_optimization": {"stage": 1, "reduce_bucket_size": BUCKET}, "data_types": {"grad_accum_dtype": "fp32"},
    }
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.AdamW(model.parameters()), config=config, dist_init_required=False
    )
    loss = engine(torch.ones(1, WIDTH, dtype=torch.bfloat16 if bf16 else torch.float32)).float().sum()
    messages.clear()
    engine.backward(loss)
    return max(messages)


fp32, bf16 = largest(False), largest(True)
total = LAYERS * WIDTH * WIDTH
print(f"deepspeed {deepspeed.__version__}, torch {torch.__version__}: ZeRO 1, {total} elements, reduce_bucket_size {BUCKET}")
print(f"largest message in fp32: {fp32} elements, in bf16: {bf16}")
assert fp32 <= BUCKET and bf16 == total
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/buckets.py" "$folder" 2>/dev/null
