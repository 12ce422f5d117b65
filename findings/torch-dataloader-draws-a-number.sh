#!/usr/bin/env bash
# Guess: a DataLoader without shuffling and without workers uses no random number.
# Fact: every iteration of it begins with a draw from the default generator of the process, for a seed that only workers need. With a
#   generator= of its own it draws from that one.
# Why it matters: each evaluation inside a training loop moves on the generator that dropout, sampled noise and random pass counts draw
#   from. Runs that differ in how often they evaluate, or that evaluate once more after a restart, take different steps from there on, and
#   are not the controls for each other that they are taken for.
# Seen with torch 2.13.0 (CPU build).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 numpy==2.1.3 2>/dev/null
cat > "$folder/draws.py" <<'PY'
import torch
from torch.utils.data import DataLoader


def masks(between=None):
    """Two dropout masks of a seeded training, with something between them."""
    torch.manual_seed(0)
    first = torch.nn.functional.dropout(torch.ones(16))
    if between is not None:
        between()
    return torch.cat([first, torch.nn.functional.dropout(torch.ones(16))])


held_out = DataLoader(range(4), batch_size=2)
own = DataLoader(range(4), batch_size=2, generator=torch.Generator())
print("torch", torch.__version__.split("+")[0])
for name, between in (
    ("made, not read", lambda: DataLoader(range(4), batch_size=2)),
    ("read once", lambda: list(held_out)),
    ("read once, a generator of its own", lambda: list(own)),
    ("only its indices", lambda: list(held_out.batch_sampler)),
):
    print(f"{name}: the masks are {'equal' if torch.equal(masks(), masks(between)) else 'different'}")
PY
"$folder/venv/bin/python" "$folder/draws.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
torch 2.13.0
made, not read: the masks are equal
read once: the masks are different
read once, a generator of its own: the masks are equal
only its indices: the masks are equal
SEEN
