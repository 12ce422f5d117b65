#!/usr/bin/env bash
# Guess: Adam and AdamW of MLX are those of the papers and of torch: the first step of a parameter is as long as the learning rate.
# Fact: bias_correction is False by default. With betas of 0.9 and 0.999 the first step is 3.2 times the learning rate, the tenth 6.5 times; the
#   steps come down to the learning rate only after some thousands. bias_correction=True gives torch's steps. Betas and eps are the same.
# Why it matters: a recipe that is tried on a Mac has another warm-up than on the cluster: a rate that is stable there diverges here, or a rate found
#   here is several times too low there. A state that is moved from torch to MLX in the middle of a run goes on right, so that a check of
#   resuming does not show it.
# Seen with mlx 0.32.4 on Linux, CPU, and torch 2.13.0 (CPU build).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install mlx==0.32.4 mlx-cpu==0.32.4 torch==2.13.0 numpy==2.1.3 2>/dev/null
cat > "$folder/steps.py" <<'PY'
from importlib import metadata

import mlx.core as mx
import mlx.optimizers as of_mlx
import torch

RATE, SHOWN = 0.1, (1, 2, 10, 100, 1000, 3000)
mx.set_default_device(mx.cpu)


def mlx_steps(optimizer):
    """The lengths of steps under a gradient of one, in learning rates."""
    parameters, lengths = {"weight": mx.zeros(1)}, []
    for _ in range(max(SHOWN)):
        before, parameters = parameters, optimizer.apply_gradients({"weight": mx.ones(1)}, {"weight": mx.zeros(1)})
        lengths.append(-parameters["weight"].item() / RATE)
    return lengths


def torch_steps(kind, **options):
    weight, lengths = torch.nn.Parameter(torch.zeros(1)), []
    optimizer = kind([weight], lr=RATE, **options)
    for _ in range(max(SHOWN)):
        weight.data.zero_()
        weight.grad = torch.ones(1)
        optimizer.step()
        lengths.append(-weight.item() / RATE)
    return lengths


print("mlx", metadata.version("mlx"), "torch", torch.__version__.split("+")[0])
for name, lengths in {
    "torch AdamW": torch_steps(torch.optim.AdamW, weight_decay=0.0),
    "mlx AdamW": mlx_steps(of_mlx.AdamW(RATE, weight_decay=0.0)),
    "mlx AdamW, bias_correction=True": mlx_steps(of_mlx.AdamW(RATE, weight_decay=0.0, bias_correction=True)),
    "mlx Adam": mlx_steps(of_mlx.Adam(RATE)),
}.items():
    print(f"{name:32}", ", ".join(f"step {step}: {lengths[step - 1]:.2f}" for step in SHOWN))
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/steps.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
mlx 0.32.4 torch 2.13.0
torch AdamW                      step 1: 1.00, step 2: 1.00, step 10: 1.00, step 100: 1.00, step 1000: 1.00, step 3000: 1.00
mlx AdamW                        step 1: 3.16, step 2: 4.25, step 10: 6.53, step 100: 3.24, step 1000: 1.26, step 3000: 1.03
mlx AdamW, bias_correction=True  step 1: 1.00, step 2: 1.00, step 10: 1.00, step 100: 1.00, step 1000: 1.00, step 3000: 1.00
mlx Adam                         step 1: 3.16, step 2: 4.25, step 10: 6.53, step 100: 3.24, step 1000: 1.26, step 3000: 1.03
SEEN
