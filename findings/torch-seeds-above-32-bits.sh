#!/usr/bin/env bash
# Guess: torch.manual_seed and Generator.manual_seed take a seed of 64 bits: seeds that differ give other numbers.
# Fact: a CPU generator uses the lower 32 bits. 7 and 7 + 2**32 give the same numbers of every distribution, although initial_seed() tells them
#   apart, and nothing is said. Of 200,000 seeds of 64 bits from SHA-256, eight give the numbers of another one.
# Why it matters: seeds that are put together with a shift, (epoch << 32) + rank, are those of the first epoch in all epochs: the same masks, the
#   same noise, the same order of the data. A hash of 64 bits of a parameter's name keeps apart no more than one of 32 bits does. Fold
#   what has to count into the lower 32 bits; np.random.default_rng uses all of them.
# Seen with torch 2.13.0 (CPU build) and numpy 2.1.3.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 numpy==2.1.3 2>/dev/null
cat > "$folder/seeds.py" <<'PY'
import hashlib

import numpy as np
import torch

DRAWS = {
    "rand": lambda generator: torch.rand(1000, generator=generator),
    "randn": lambda generator: torch.randn(1000, generator=generator),
    "randint": lambda generator: torch.randint(1 << 62, (1000,), generator=generator),
    "randperm": lambda generator: torch.randperm(1000, generator=generator),
    "bernoulli": lambda generator: torch.full((1000,), 0.5).bernoulli_(generator=generator),
}
print("torch", torch.__version__.split("+")[0], "numpy", np.__version__)
for other in (8, 7 + (1 << 32), 7 + (5 << 32), 7 + (1 << 63)):
    first, second = torch.Generator().manual_seed(7), torch.Generator().manual_seed(other)
    same = [name for name, draw in DRAWS.items() if torch.equal(draw(first), draw(second))]
    of_numpy = np.array_equal(np.random.default_rng(7).random(1000), np.random.default_rng(other).random(1000))
    print(f"7 and {other}: initial seeds {first.initial_seed()} and {second.initial_seed()},", end=" ")
    print(f"the same: {', '.join(same) or 'none'}; by numpy: {'the same' if of_numpy else 'not the same'}")

generator = torch.Generator()
streams = {}
for number in range(200_000):
    seed = int.from_bytes(hashlib.sha256(str(number).encode()).digest()[:8], "big")
    stream = tuple(torch.randint(1 << 31, (3,), generator=generator.manual_seed(seed)).tolist())
    streams.setdefault(stream, set()).add(seed)
seeds = sum(map(len, streams.values()))
print(f"{seeds:,} seeds of 64 bits: {len(streams):,} different draws of three numbers")
PY
"$folder/venv/bin/python" "$folder/seeds.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
torch 2.13.0 numpy 2.1.3
7 and 8: initial seeds 7 and 8, the same: none; by numpy: not the same
7 and 4294967303: initial seeds 7 and 4294967303, the same: rand, randn, randint, randperm, bernoulli; by numpy: not the same
7 and 21474836487: initial seeds 7 and 21474836487, the same: rand, randn, randint, randperm, bernoulli; by numpy: not the same
7 and 9223372036854775815: initial seeds 7 and 9223372036854775815, the same: rand, randn, randint, randperm, bernoulli; by numpy: not the same
200,000 seeds of 64 bits: 199,992 different draws of three numbers
SEEN
