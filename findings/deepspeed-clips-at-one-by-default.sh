#!/usr/bin/env bash
# Guess: a configuration without gradient_clipping does not clip: so it was for years, and so it is where a key is left out in torch.
# Fact: deepspeed 0.19.8 clips at a norm of 1.0 then; 0.18.2 did not. gradient_clipping: 0 turns it off. Nothing is printed.
# Why it matters: after an upgrade the same configuration trains otherwise, and a comparison with a framework that does not clip is of two
#   recipes.
# Seen with deepspeed 0.18.2 and 0.19.8, torch 2.13.0 on a CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 numpy==2.1.3 2>/dev/null
cat > "$folder/step.py" <<'PY'
import os
import sys

import torch

os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed
import deepspeed.ops

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else a C++ operator is compiled first
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)


def move(options: dict[str, float]) -> float:
    """The norm of a step of SGD at a rate of 1, whose gradient has a norm of 4."""
    model = torch.nn.Linear(4, 4, bias=False)
    before = model.weight.detach().clone()
    config = {"train_micro_batch_size_per_gpu": 1, **options}
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0), config=config, dist_init_required=False
    )
    engine.backward(engine(torch.ones(1, 4)).sum())
    engine.step()
    return round((model.weight - before).norm().item(), 3)


print(f"deepspeed {deepspeed.__version__}: moves {move({})} without the key, {move({'gradient_clipping': 0.0})} with gradient_clipping 0")
sys.stdout.flush()
os._exit(0)  # destructors of the engines print at the end of the interpreter
PY
export RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=0 OMP_NUM_THREADS=1
for version in 0.18.2 0.19.8; do
    "$folder/venv/bin/pip" -q install deepspeed==$version 2>/dev/null
    "$folder/venv/bin/python" "$folder/step.py" "$folder/rendezvous-$version" 2>"$folder/err" | { grep '^deepspeed 0' || cat "$folder/err"; }
done | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
deepspeed 0.18.2: moves 4.0 without the key, 4.0 with gradient_clipping 0
deepspeed 0.19.8: moves 1.0 without the key, 4.0 with gradient_clipping 0
SEEN
