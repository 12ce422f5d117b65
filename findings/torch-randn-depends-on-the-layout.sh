#!/usr/bin/env bash
# Guess: after torch.manual_seed, randn and normal_ give one stream of numbers, as rand does: a longer tensor begins with the numbers of a
#   shorter one, parts that are drawn one after the other are the whole, and strides do not change which numbers a tensor gets.
# Fact: contiguous tensors of 16 numbers and more are filled in groups of 16, and the last 16 are drawn again if the size is no multiple
#   of 16. Shorter ones and those that are not contiguous get a different sequence. The same seed gives a transposed weight, or one that is a
#   slice of a wider tensor, other values; randn(15) has none of the numbers of randn(16); a vocabulary of 100 and the same padded to
#   112 differ inside the first 100. rand gives one stream in all these cases, in the order of memory.
# Why it matters: tests of parallel layouts draw shards, and parts of a joint matrix, and compare with the whole; a model with a
#   padded vocabulary, or with weights stored transposed, does not begin where the same seed began without.
# Seen with torch 2.13.0 (CPU build).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 numpy==2.1.3 2>/dev/null
cat > "$folder/draws.py" <<'PY'
import torch


def part(one: torch.Tensor, other: torch.Tensor) -> str:
    """How many numbers of two tensors are equal, place by place."""
    return f"{(one == other).sum().item()} of {one.numel()}"


def drawn(kind: str, *shapes: torch.Tensor) -> torch.Tensor:
    """Numbers of tensors that are drawn one after the other from one seed, in the order in which they lie in memory."""
    torch.manual_seed(0)
    for tensor in shapes:
        tensor.normal_() if kind == "normal_" else tensor.uniform_()
    return torch.cat([in_memory.flatten() for in_memory in (t if t.stride(-1) == 1 else t.t() for t in shapes)])


print("torch", torch.__version__.split("+")[0])
new = torch.empty
for kind in ("normal_", "uniform_"):
    print(f"{kind}: 15 numbers, and the first of 16:", part(drawn(kind, new(15)), drawn(kind, new(16))[:15]))
    print(f"{kind}: 100 numbers, and the first of 112:", part(drawn(kind, new(100)), drawn(kind, new(112))[:100]))
    print(f"{kind}: 96 numbers, and 48 twice:", part(drawn(kind, new(96)), drawn(kind, new(48), new(48))))
    print(f"{kind}: 96 numbers, and 50, then 46:", part(drawn(kind, new(96)), drawn(kind, new(50), new(46))))
    print(f"{kind}: [64, 64], and transposed:", part(drawn(kind, new(64, 64)), drawn(kind, new(64, 64).t())))
    print(f"{kind}: [64, 64], and half of [64, 128]:", part(drawn(kind, new(64, 64)), drawn(kind, new(64, 128)[:, :64])))
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/draws.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
torch 2.13.0
normal_: 15 numbers, and the first of 16: 0 of 15
normal_: 100 numbers, and the first of 112: 84 of 100
normal_: 96 numbers, and 48 twice: 96 of 96
normal_: 96 numbers, and 50, then 46: 34 of 96
normal_: [64, 64], and transposed: 0 of 4096
normal_: [64, 64], and half of [64, 128]: 0 of 4096
uniform_: 15 numbers, and the first of 16: 15 of 15
uniform_: 100 numbers, and the first of 112: 100 of 100
uniform_: 96 numbers, and 48 twice: 96 of 96
uniform_: 96 numbers, and 50, then 46: 96 of 96
uniform_: [64, 64], and transposed: 4096 of 4096
uniform_: [64, 64], and half of [64, 128]: 4096 of 4096
SEEN
