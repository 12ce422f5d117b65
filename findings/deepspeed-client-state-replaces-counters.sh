#!/usr/bin/env bash
# Guess: client_state of DeepSpeed's save_checkpoint is a dictionary of one's own: load_checkpoint returns it, and the engine keeps its own state.
# Fact: both are one dictionary. Keys such as global_steps, skipped_steps, global_samples and lr_scheduler replace those of the engine in the
#   file; the engine takes them for its own when it loads, and does not return all of them. Nothing is said when it saves.
# Why it matters: "global_steps", counted in other units or since another point, is what a training loop keeps. After a restart the
#   engine's counters, the tag of its next checkpoint and the axis of its monitors are those numbers, and the loop finds its key missing.
#   Put everything under one key of one's own.
# Seen with deepspeed 0.19.8 and torch 2.13.0 on a CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 deepspeed==0.19.8 2>/dev/null
cat > "$folder/state.py" <<'PY'
import os
import sys

import torch

os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
import deepspeed
import deepspeed.ops

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else a C++ operator is compiled first
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/rendezvous", rank=0, world_size=1)
print("SEEN deepspeed", deepspeed.__version__.split("+")[0])


def make():
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config={"train_micro_batch_size_per_gpu": 4})
    return engine


engine = make()
for _ in range(3):
    engine.backward(engine(torch.ones(4, 2)).sum())
    engine.step()
print(f"SEEN saved: global_steps {engine.global_steps}, global_samples {engine.global_samples}, skipped_steps {engine.skipped_steps}")
given = {"epoch": 1, "global_steps": 700, "global_samples": 11, "skipped_steps": 5, "lr_scheduler": {"phase": "decay"}}
engine.save_checkpoint(f"{sys.argv[1]}/checkpoint", tag="three", client_state=given)
engine = make()
_, returned = engine.load_checkpoint(f"{sys.argv[1]}/checkpoint", tag="three")
print(f"SEEN loaded: global_steps {engine.global_steps}, global_samples {engine.global_samples}, skipped_steps {engine.skipped_steps}")
for key, value in given.items():
    print(f"SEEN client_state {key}: {'returned' if returned.get(key) == value else 'not returned'}")
engine.save_checkpoint(f"{sys.argv[1]}/checkpoint")
print("SEEN the next tag:", open(f"{sys.argv[1]}/checkpoint/latest").read())
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/state.py" "$folder" 2>/dev/null | sed -n 's/^SEEN //p' | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
deepspeed 0.19.8
saved: global_steps 3, global_samples 12, skipped_steps 0
loaded: global_steps 700, global_samples 11, skipped_steps 5
client_state epoch: returned
client_state global_steps: not returned
client_state global_samples: returned
client_state skipped_steps: not returned
client_state lr_scheduler: not returned
the next tag: global_step700
SEEN
