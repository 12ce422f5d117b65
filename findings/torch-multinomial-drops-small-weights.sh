#!/usr/bin/env bash
# Guess: torch.multinomial draws an index as often as its weight says, up to rounding; one draw and many draws differ in number alone.
# Fact: with replacement, and for more than one draw, it sums the weights from the front in their own type, and looks a random number up in the sums.
#   In float32 a weight below half of a last place of what comes before it is never drawn. One weight of 2**24 in front of 2**23 weights
#   of 1 gets all draws, not two thirds. One draw at a time, weights in float64 and the large weight at the end are right.
# Why it matters: documents, shards or sources are drawn by size, and sizes are spread over many orders of magnitude: a large source in front of millions
#   of small documents, and none of those is read. Weights of 0.1 that are summed to more than a million are all drawn at another rate.
#   Nothing is raised, and the totals look plausible. Draw from float64.
# Seen with torch 2.13.0 (CPU build).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 numpy==2.1.3 2>/dev/null
cat > "$folder/weights.py" <<'PY'
import torch

SMALL, DRAWS = 1 << 23, 2000
print("torch", torch.__version__.split("+")[0], f"one weight of {2 * SMALL:,} and {SMALL:,} of 1: the small ones should get a third")
front = torch.ones(SMALL + 1)
front[0] = 2 * SMALL
for name, weights, large in (("float32", front, 0), ("float32, the large one last", front.flip(0), SMALL), ("float64", front.double(), 0)):
    torch.manual_seed(0)
    drawn = torch.multinomial(weights, DRAWS, replacement=True)
    print(f"{name}: {(drawn != large).double().mean().item():.1f} in {DRAWS:,} draws")
torch.manual_seed(0)
drawn = torch.cat([torch.multinomial(front, 1, replacement=True) for _ in range(60)])
print(f"float32, one draw at a time: {(drawn != 0).double().mean().item():.1f} in 60 draws")
print("15 million weights of 0.1: the share of the last third should be 0.33")
tenths = torch.full((15_000_000,), 0.1)
for name, weights in (("float32", tenths), ("float64", tenths.double())):
    torch.manual_seed(0)
    drawn = torch.multinomial(weights, 200_000, replacement=True)
    print(f"{name}: {(drawn >= 10_000_000).double().mean().item():.2f}")
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/weights.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
torch 2.13.0 one weight of 16,777,216 and 8,388,608 of 1: the small ones should get a third
float32: 0.0 in 2,000 draws
float32, the large one last: 0.3 in 2,000 draws
float64: 0.3 in 2,000 draws
float32, one draw at a time: 0.3 in 60 draws
15 million weights of 0.1: the share of the last third should be 0.33
float32: 0.36
float64: 0.33
SEEN
