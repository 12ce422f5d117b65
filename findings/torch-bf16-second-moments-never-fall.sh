#!/usr/bin/env bash
# Guess: AdamW on bf16 parameters is less precise than on float32 ones, but its second moment follows the gradients: some thousand steps after
#   a spike (beta2 of 0.999) the spike is forgotten.
# Fact: the state has the type of the parameter. v * 0.999 is nearer to v than to the next smaller bf16 number, and is v again: the second moment
#   goes up and never comes down, fused or not. With a beta2 of 0.95 it comes down. An average of weights in bf16 with a decay of 0.999
#   (torch.optim.swa_utils) stays where it began, for the same reason.
# Why it matters: one spike of the loss lowers the rate of the weights that it met for the rest of the run: below to 3 % of what it was, at the
#   same gradients. The loss goes on falling, slower. Keep float32 parameters under autocast, an optimizer with float32 state, or
#   beta2 of 0.95.
# Seen with torch 2.13.0 (CPU build).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 numpy==2.1.3 2>/dev/null
cat > "$folder/spike.py" <<'PY'
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

GRADIENT, SPIKE = 0.01, 10.0
WAYS = {"foreach": {"foreach": True}, "fused": {"fused": True}}
print("torch", torch.__version__.split("+")[0], f"one gradient of {SPIKE}, then 8,000 of {GRADIENT}; a second moment of 1.0e-04 is right")
for kind in (torch.float32, torch.bfloat16):
    for beta in (0.999, 0.95):
        seen = []
        for name, way in WAYS.items():
            weight = torch.nn.Parameter(torch.zeros(32, dtype=kind))
            optimizer = torch.optim.AdamW([weight], lr=1e-3, betas=(0.9, beta), weight_decay=0.0, **way)
            for step in range(8_001):
                weight.grad = torch.full_like(weight, GRADIENT if step else SPIKE)
                optimizer.step()
            second = optimizer.state[weight]["exp_avg_sq"][0].item()
            seen.append(f"{name} {second:.1e}, a step of {GRADIENT / second**0.5:.2f} times lr")
        print(f"{kind}, beta2 {beta}:", "; ".join(seen))
for kind in (torch.float32, torch.bfloat16):
    model = torch.nn.Linear(1, 1, bias=False, dtype=kind)
    model.weight.data.fill_(1.0)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    average.update_parameters(model)
    model.weight.data.fill_(2.0)
    for _ in range(10_000):
        average.update_parameters(model)
    print(f"{kind}, average with a decay of 0.999 after 10,000 steps at 2, begun at 1: {average.module.weight.item():.2f}")
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/spike.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
torch 2.13.0 one gradient of 10.0, then 8,000 of 0.01; a second moment of 1.0e-04 is right
torch.float32, beta2 0.999: foreach 1.3e-04, a step of 0.87 times lr; fused 1.3e-04, a step of 0.87 times lr
torch.float32, beta2 0.95: foreach 1.0e-04, a step of 1.00 times lr; fused 1.0e-04, a step of 1.00 times lr
torch.bfloat16, beta2 0.999: foreach 1.0e-01, a step of 0.03 times lr; fused 1.0e-01, a step of 0.03 times lr
torch.bfloat16, beta2 0.95: foreach 1.1e-04, a step of 0.96 times lr; fused 1.0e-04, a step of 0.98 times lr
torch.float32, average with a decay of 0.999 after 10,000 steps at 2, begun at 1: 2.00
torch.bfloat16, average with a decay of 0.999 after 10,000 steps at 2, begun at 1: 1.00
SEEN
