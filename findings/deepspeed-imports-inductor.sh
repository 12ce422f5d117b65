#!/usr/bin/env bash
# Guess: a DeepSpeed engine around torch's AdamW, which compiles nothing, does not import TorchInductor.
# Fact: deepspeed.initialize imports the module of its Muon to compare the optimizer with it. Three functions there are decorated
#   with torch.compile, and decorating with the default backend imports TorchInductor: hundreds of modules, in every process, for
#   every optimizer. The compiled functions are never called.
# Why it matters: every rank pays seconds of CPU time before its first step; a node with 8 ranks pays them 8 times at once, and each
#   restart again. `import deepspeed` alone imports none of it, so that a profile of imports does not show it.
# Seen with deepspeed 0.19.8 and torch 2.13.0 on a CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 deepspeed==0.19.8 2>/dev/null
cat > "$folder/start.py" <<'PY'
import os
import sys
import time

import torch

os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
import deepspeed
import deepspeed.ops

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else a C++ operator is compiled first
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/rendezvous", rank=0, world_size=1)
deepspeed.comm.init_distributed(auto_mpi_discovery=False, verbose=False)


def inductor() -> bool:
    """Whether the compiler is imported, with the lowering of every operator."""
    return "torch._inductor.compile_fx" in sys.modules and "torch._inductor.lowering" in sys.modules


model = torch.nn.Linear(4, 4)
optimizer = torch.optim.AdamW(model.parameters())
before, muon = inductor(), "deepspeed.runtime.zero.muon.original_muon" in sys.modules
start = time.process_time()
config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 1}, "zero_allow_untested_optimizer": True}
deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
seconds = time.process_time() - start
after = inductor()
print(f"deepspeed {deepspeed.__version__}, torch {torch.__version__}: TorchInductor imported before initialize: {before}, after: {after}")
print(f"Muon's module imported before initialize: {muon}, after: {'deepspeed.runtime.zero.muon.original_muon' in sys.modules}")
print(f"initialize took {seconds:.1f} s of CPU time here")
assert not before and not muon
assert after
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/start.py" "$folder" 2>/dev/null
