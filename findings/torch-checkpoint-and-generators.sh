#!/usr/bin/env bash
# Guess: torch.utils.checkpoint with preserve_rng_state=True, the default, draws the same random numbers when it runs a function again, or its
#   determinism check raises an error.
# Fact: it restores the default generators alone. A function that draws from a torch.Generator of its own has another mask in backward than in
#   forward, and the gradient is that of the second mask. The check compares shapes and types, and passes. The generator has moved on twice,
#   too, so that the next step draws other numbers than without checkpointing.
# Why it matters: a generator of one's own is how dropout, noise or random depth is kept apart from the data and from other ranks. With
#   recomputation switched on the run trains on wrong gradients, and nothing says so. Draw outside of the function and hand the numbers in.
# Seen with torch 2.13.0 (CPU build).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 numpy==2.1.3 2>/dev/null
cat > "$folder/masks.py" <<'PY'
import torch
from torch.utils.checkpoint import checkpoint

COUNT = 10_000
print("torch", torch.__version__.split("+")[0])


def agreement(own: bool, how: str) -> str:
    """The share of elements whose gradient is that of the output, and the next number that the generator gives."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0) if own else torch.default_generator
    x = torch.ones(COUNT, requires_grad=True)

    def noise(x, mask=None):
        mask = torch.rand(COUNT, generator=generator) < 0.5 if mask is None else mask
        return (x * mask).square()

    if how == "plain":
        y = noise(x)
    elif how == "numbers handed in":
        y = checkpoint(noise, x, torch.rand(COUNT, generator=generator) < 0.5, use_reentrant=False)
    else:
        y = checkpoint(noise, x, use_reentrant=how == "reentrant")
    y.sum().backward()
    return f"{(x.grad == 2 * y).double().mean():.0%} of the gradients are right, next number {torch.rand(1, generator=generator).item():.3f}"


for own in (False, True):
    for how in ("plain", "not reentrant", "reentrant", "numbers handed in"):
        print(f"{'own generator' if own else 'default generator'}, {how}: {agreement(own, how)}")
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/masks.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
torch 2.13.0
default generator, plain: 100% of the gradients are right, next number 0.896
default generator, not reentrant: 100% of the gradients are right, next number 0.896
default generator, reentrant: 100% of the gradients are right, next number 0.896
default generator, numbers handed in: 100% of the gradients are right, next number 0.896
own generator, plain: 100% of the gradients are right, next number 0.896
own generator, not reentrant: 50% of the gradients are right, next number 0.557
own generator, reentrant: 50% of the gradients are right, next number 0.557
own generator, numbers handed in: 100% of the gradients are right, next number 0.896
SEEN
