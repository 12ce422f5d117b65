#!/usr/bin/env bash
# Guess: torch.rand in bf16 is a random number of float32, rounded: 0 is next to impossible, and rand < p is true with probability p.
# Fact: it is, but numbers that round up to 1, which is not in [0, 1), are returned as 0. On a CPU one of 512 numbers is exactly 0, in fp16 one
#   of 4,096, and rand < 0.001 is true three times as often as it should be in bf16. bernoulli_ is right, and so is rand of float32.
# Why it matters: rand_like(x) < p draws the mask of a noise, a layer that is left out or a token that is masked, and x is bf16 in
#   training. -log(rand), for sampling by Gumbel noise, is infinite for 1 of 512 tokens: that token is the sample. Draw in float32.
# Seen with torch 2.13.0 (CPU build).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 numpy==2.1.3 2>/dev/null
cat > "$folder/draws.py" <<'PY'
import math

import torch

COUNT = 1 << 22
print("torch", torch.__version__.split("+")[0])
for kind in (torch.bfloat16, torch.float16, torch.float32):
    torch.manual_seed(0)
    rounded = torch.rand(COUNT).to(kind)
    torch.manual_seed(0)
    drawn = torch.rand(COUNT, dtype=kind)
    if kind != torch.float32:
        print(f"{kind}: float32, rounded, with 0 in place of 1: {torch.equal(drawn, rounded.where(rounded < 1, 0))}")
    zeros = (drawn == 0).sum().item()
    print(f"{kind}:", f"one of about {2 ** round(math.log2(COUNT / zeros)):,} is 0," if zeros > 9 else "hardly any 0,", end=" ")
    print("infinite -log:", (drawn.log() == -torch.inf).sum().item() > 9, end=",")
    for p in (0.001, 0.01):
        print(f" rand < {p}: {(drawn.double() < p).double().mean().item() / p:.1f} times p", end=",")
    print(f" bernoulli_(0.001): {torch.empty_like(drawn).bernoulli_(0.001).double().mean().item() / 0.001:.1f} times p")
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/draws.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
torch 2.13.0
torch.bfloat16: float32, rounded, with 0 in place of 1: True
torch.bfloat16: one of about 512 is 0, infinite -log: True, rand < 0.001: 3.0 times p, rand < 0.01: 1.2 times p, bernoulli_(0.001): 1.0 times p
torch.float16: float32, rounded, with 0 in place of 1: True
torch.float16: one of about 4,096 is 0, infinite -log: True, rand < 0.001: 1.3 times p, rand < 0.01: 1.0 times p, bernoulli_(0.001): 1.0 times p
torch.float32: hardly any 0, infinite -log: False, rand < 0.001: 1.0 times p, rand < 0.01: 1.0 times p, bernoulli_(0.001): 1.0 times p
SEEN
