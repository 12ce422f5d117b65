#!/usr/bin/env bash
# Guess: DeepSpeed's non_reentrant_checkpoint nests as torch's does: a checkpointed window of checkpointed layers keeps the
#   inputs of windows after forward, and recomputes the inputs of layers.
# Fact: the outer level has no effect. After forward the inputs of all layers are kept, and every layer is recomputed once;
#   with torch's checkpoint it is recomputed twice, less what early stopping saves. Gradients are equal.
# Why it matters: a recompute policy of two levels (windows, and the layers in them) costs the memory of the inner one. With
#   128 windows of 24 layers that is 24 times what a plan for two levels counts. sleeptrain's executor recomputes by itself,
#   and its reference path uses torch's checkpoint.
# Seen with deepspeed 0.19.8 and torch 2.13.0 on a CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 deepspeed==0.19.8 2>/dev/null
cat > "$folder/nested.py" <<'PY'
import sys
from pathlib import Path

import torch
from deepspeed.runtime.activation_checkpointing.checkpointing import non_reentrant_checkpoint
from torch.utils.checkpoint import checkpoint

WINDOWS, LAYERS, STEPS = 2, 32, 2
WRAPPERS = {
    "torch": lambda function, x: checkpoint(function, x, use_reentrant=False),
    "deepspeed": lambda function, x: non_reentrant_checkpoint(function, x),
}
wrap, calls = WRAPPERS[sys.argv[1]], 0
torch.manual_seed(0)
weight = torch.nn.Parameter(torch.ones(2048) + 0.1 * torch.randn(2048))


def layer(x):
    """Two steps that save 8 MiB each."""
    global calls
    calls += 1
    for _ in range(STEPS):
        x = torch.tanh(x * weight)
    return x


def window(x):
    for _ in range(LAYERS):
        x = wrap(layer, x)
    return x


def resident():
    """MiB of memory in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


wrap(window, torch.randn(1, 2048)).sum().backward()  # loads what is loaded at the first use
calls, weight.grad = 0, None
x = torch.randn(1024, 2048)
before = resident()
for _ in range(WINDOWS):
    x = wrap(window, x)
forward, kept = calls, resident() - before
x.sum().backward()
print(forward, calls, round(kept), weight.grad.norm().item())
PY
for kind in torch deepspeed; do
    # Large tensors in mappings of their own: freed memory is given back at once.
    MALLOC_MMAP_THRESHOLD_=65536 "$folder/venv/bin/python" "$folder/nested.py" "$kind" 2>/dev/null | tail -n 1 > "$folder/$kind"
    read -r forward all kept norm < "$folder/$kind"
    echo "$kind: layer calls $forward in forward, $all in all; forward keeps $kept MiB; gradient norm $norm"
done
read -r _ torch_calls torch_kept torch_norm < "$folder/torch"
read -r _ deepspeed_calls deepspeed_kept deepspeed_norm < "$folder/deepspeed"
[ "$torch_norm" = "$deepspeed_norm" ] || { echo "changed: the gradients differ"; exit 1; }
[ "$torch_calls" -gt 160 ] && [ "$deepspeed_calls" -eq 128 ] || { echo "changed: layer calls"; exit 1; }
[ "$deepspeed_kept" -gt $((4 * torch_kept)) ] || { echo "changed: memory"; exit 1; }
