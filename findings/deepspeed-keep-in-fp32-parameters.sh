#!/usr/bin/env bash
# Guess: parameters whose names match DeepSpeed's `data_types.keep_in_fp32_modules` stay float32 under bf16 training.
# Fact: only buffers stay float32. A parameter of the same name is cast to bfloat16 with the rest of the model, without a message, also
#   where the pattern matches nothing but parameters.
# Why it matters: a state-space block computes its decay as exp(-exp(A_log) * dt). bfloat16 has three significant digits, so that the
#   decay that training uses differs from that of the float32 master weights; naming A_log, dt_bias or a norm in this key changes nothing.
# Seen with deepspeed 0.19.8 and torch 2.13.0 on a CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 deepspeed==0.19.8 2>/dev/null
cat > "$folder/keep.py" <<'PY'
import os
import sys

import torch

os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
import deepspeed
import deepspeed.ops

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else a C++ operator is compiled first
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/rendezvous", rank=0, world_size=1)
deepspeed.comm.init_distributed(auto_mpi_discovery=False, verbose=False)


class Decay(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.A_log = torch.nn.Parameter(torch.tensor([1.2345678]))
        self.register_buffer("A_log_start", torch.tensor([1.2345678]))
        self.w = torch.nn.Parameter(torch.ones(3))


model = Decay()
config = {
    "train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 1}, "zero_allow_untested_optimizer": True,
    "bf16": {"enabled": True}, "data_types": {"keep_in_fp32_modules": ["A_log*"]},
}
deepspeed.initialize(
    model=model, optimizer=torch.optim.AdamW(model.parameters()), config=config, dist_init_required=False
)
print(f"deepspeed {deepspeed.__version__}, torch {torch.__version__}, keep_in_fp32_modules: ['A_log*']")
print(f"buffer A_log_start: {model.A_log_start.dtype}, parameter A_log: {model.A_log.dtype} {model.A_log.item()}, parameter w: {model.w.dtype}")
assert model.A_log_start.dtype == torch.float32
assert model.A_log.dtype == model.w.dtype == torch.bfloat16
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/keep.py" "$folder" 2>/dev/null
