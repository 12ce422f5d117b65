#!/usr/bin/env bash
# Guess: a weight whose gradients have become zero comes to rest: momentum dies away by 0.95 a step, and the step with it, as with SGD and AdamW.
# Fact: Muon scales the momentum to the same size in every step. The steps keep their full length, all in the direction of the last gradients,
#   until the momentum is below eps, 1e-7: more than 300 steps after the last gradient. Below, they carry the weight 18 times as far as the
#   50 steps with gradients did. SGD with the same momentum goes 0.2 times as far again, AdamW 0.8 times.
# Why it matters: gradients of exact zeros, not of None, come from experts that no token is sent to, from a loss that is switched off, a branch
#   that is masked out, or padded rows of data. The matrix is carried off in a straight line. Clipping does not shorten the steps. Set
#   grad to None, or clear the momentum of what gets no gradient; a larger eps ends it sooner.
# Seen with torch 2.13.0 (CPU build).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 numpy==2.1.3 2>/dev/null
cat > "$folder/rest.py" <<'PY'
import torch

GRADIENTS = 50
MAKE = {
    "SGD": lambda weight: torch.optim.SGD([weight], lr=0.01, momentum=0.95, dampening=0.95, nesterov=False),
    "AdamW": lambda weight: torch.optim.AdamW([weight], lr=0.01, betas=(0.95, 0.95), weight_decay=0.0),
    "Muon": lambda weight: torch.optim.Muon([weight], lr=0.01, momentum=0.95, weight_decay=0.0),
    "Muon, eps=1e-2": lambda weight: torch.optim.Muon([weight], lr=0.01, momentum=0.95, weight_decay=0.0, eps=1e-2),
}
print("torch", torch.__version__.split("+")[0], f"gradients in the first {GRADIENTS} of 700 steps, zeros after them")
for name, make in MAKE.items():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(64, 64))
    optimizer, lengths = make(weight), []
    for step in range(700):
        weight.grad = torch.randn(64, 64) if step < GRADIENTS else torch.zeros(64, 64)
        before = weight.detach().clone()
        optimizer.step()
        lengths.append((weight.detach() - before).norm())
        if step == GRADIENTS - 1:
            reached, length = weight.detach().clone(), lengths[-1]
    further = (weight.detach() - reached).norm() / reached.norm()
    shares = ", ".join(f"{after}: {lengths[GRADIENTS - 1 + after] / length:.2f}" for after in (1, 20, 100, 300, 600))
    print(f"{name}: {further:.1f} times as far again; length of a step, by steps since the last gradient: {shares}")
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/rest.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
torch 2.13.0 gradients in the first 50 of 700 steps, zeros after them
SGD: 0.2 times as far again; length of a step, by steps since the last gradient: 1: 0.95, 20: 0.36, 100: 0.01, 300: 0.00, 600: 0.00
AdamW: 0.8 times as far again; length of a step, by steps since the last gradient: 1: 0.97, 20: 0.58, 100: 0.07, 300: 0.00, 600: 0.00
Muon: 17.9 times as far again; length of a step, by steps since the last gradient: 1: 1.00, 20: 1.00, 100: 1.00, 300: 1.00, 600: 0.00
Muon, eps=1e-2: 9.1 times as far again; length of a step, by steps since the last gradient: 1: 1.00, 20: 1.00, 100: 1.00, 300: 0.01, 600: 0.00
SEEN
