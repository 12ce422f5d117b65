#!/usr/bin/env bash
# Guess: inside torch.autocast a product reads its weight as it is at that moment, so that a weight may be written between two products.
# Fact: the bf16 copy of a float32 leaf that requires a gradient is made once and kept until the outermost region ends. A weight that is
#   written in between, also by an optimizer's step, goes on as it was before. Nothing is raised. A weight that requires no gradient is
#   read anew, and so is every weight with cache_enabled=False.
# Why it matters: fast weights and test-time training write weights inside a forward pass, which is where the region is. A loop of
#   training steps inside one region trains: the weights move, and each loss and gradient is that of the first weights.
# Seen with torch 2.13.0 (CPU build).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 numpy==2.1.3 2>/dev/null
cat > "$folder/autocast.py" <<'PY'
import contextlib

import torch


def write_between(requires_grad=True, cache_enabled=True):
    """The product with a weight of zeros, the product after ones were written into it, and the one after the region."""
    weight, x = torch.nn.Parameter(torch.zeros(4, 1), requires_grad=requires_grad), torch.ones(1, 4)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache_enabled):
        before = x @ weight
        with torch.no_grad():
            weight.fill_(1.0)
        after = x @ weight
    return before.item(), after.item(), (x @ weight).item()


def losses(one_region):
    """The losses of three steps of gradient descent on one weight."""
    weight, x, seen = torch.nn.Parameter(torch.ones(1, 1)), torch.ones(1, 1), []
    optimizer = torch.optim.SGD([weight], lr=0.25)
    with torch.autocast("cpu", torch.bfloat16) if one_region else contextlib.nullcontext():
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16):
                loss = (x @ weight).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
    return seen, weight.item()


print("torch", torch.__version__.split("+")[0])
print("before, after, outside:                   ", *write_between())
print("the same with cache_enabled=False:        ", *write_between(cache_enabled=False))
print("the same for a weight without a gradient: ", *write_between(requires_grad=False))
print("losses of three steps, a region each, and the weight: ", *losses(False))
print("losses of three steps in one region, and the weight:  ", *losses(True))
PY
"$folder/venv/bin/python" "$folder/autocast.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
torch 2.13.0
before, after, outside:                    0.0 0.0 4.0
the same with cache_enabled=False:         0.0 4.0 4.0
the same for a weight without a gradient:  0.0 4.0 4.0
losses of three steps, a region each, and the weight:  [1.0, 0.25, 0.0625] 0.125
losses of three steps in one region, and the weight:   [1.0, 1.0, 1.0] -0.5
SEEN
