#!/usr/bin/env bash
# Guess: "type": "Adam" and "type": "AdamW" in DeepSpeed's configuration are two optimizers, as in torch: the first adds weight_decay to the gradient,
#   the second takes it from the weight.
# Fact: both are AdamW. "Adam" becomes what the papers call Adam only with "adam_w_mode": false among its params. The log names the class, which
#   tells it with torch_adam alone: FusedAdam and DeepSpeedCPUAdam are both optimizers.
# Why it matters: a penalty of 0.01 in the gradient is divided by the size of the gradients, as the gradient is, and is strong where they are small;
#   AdamW with a rate of 0.001 takes 0.00001 of a weight a step. A recipe that is moved from torch's Adam trains with another
#   regularization, and nothing is raised.
# Seen with deepspeed 0.19.8 and torch 2.13.0 on a CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 deepspeed==0.19.8 2>/dev/null
cat > "$folder/decay.py" <<'PY'
import os
from importlib import metadata

os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0", DS_ACCELERATOR="cpu")
import deepspeed
import torch

deepspeed.comm.init_distributed(auto_mpi_discovery=False, verbose=False)
RATE, DECAY = 0.1, 0.5


def start():
    layer = torch.nn.Linear(1, 2, bias=False)
    layer.weight.data = torch.tensor([[1.0], [4.0]])
    return layer


def weights(layer):
    return " and ".join(f"{weight:.3f}" for weight in layer.weight.flatten().tolist())


def of_torch(kind):
    layer = start()
    optimizer = kind(layer.parameters(), lr=RATE, weight_decay=DECAY)
    layer(torch.zeros(1, 1)).sum().backward()
    optimizer.step()
    return weights(layer)


def of_deepspeed(kind, **params):
    layer = start()
    engine, *_ = deepspeed.initialize(model=layer, model_parameters=layer.parameters(), config={
        "train_micro_batch_size_per_gpu": 1, "steps_per_print": 1_000_000,
        "optimizer": {"type": kind, "params": {"lr": RATE, "weight_decay": DECAY, "torch_adam": True, **params}},
    })
    engine.backward(engine(torch.zeros(1, 1)).sum())
    engine.step()
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return f"{weights(layer)} by {type(optimizer).__name__}"


print("SEEN deepspeed", metadata.version("deepspeed"), "torch", torch.__version__.split("+")[0])
print("SEEN weights 1 and 4 after a step with a gradient of zero, lr 0.1, weight_decay 0.5")
for kind in (torch.optim.Adam, torch.optim.AdamW):
    print(f"SEEN torch, {kind.__name__}: {of_torch(kind)}")
for kind, params in (("Adam", {}), ("AdamW", {}), ("Adam", {"adam_w_mode": False})):
    print(f"SEEN deepspeed, {' '.join(map(str, (kind, *params.items())))}: {of_deepspeed(kind, **params)}")
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/decay.py" 2>/dev/null | sed -n 's/^SEEN //p' | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
deepspeed 0.19.8 torch 2.13.0
weights 1 and 4 after a step with a gradient of zero, lr 0.1, weight_decay 0.5
torch, Adam: 0.900 and 3.900
torch, AdamW: 0.950 and 3.800
deepspeed, Adam: 0.950 and 3.800 by AdamW
deepspeed, AdamW: 0.950 and 3.800 by AdamW
deepspeed, Adam ('adam_w_mode', False): 0.900 and 3.900 by Adam
SEEN
