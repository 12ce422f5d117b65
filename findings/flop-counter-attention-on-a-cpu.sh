#!/usr/bin/env bash
# Guess: torch.utils.flop_counter counts the same operations of the same model on a CPU as on a GPU, so that MFU can be checked on a laptop.
# Fact: scaled_dot_product_attention runs on a CPU as an operator without a formula, and counts as 0, forward and backward, with no
#   warning. Nor do matrix times vector, a dot product and a triangular solve count; vector times matrix does.
# Why it matters: the FLOPs of a step of a long window are too small by all of attention, and an MFU that is computed with them,
#   too. sdpa_kernel(SDPBackend.MATH) makes attention of products that count; a causal mask halves nothing in them.
# Seen with torch 2.13.0 (CPU build).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 numpy==2.1.3 2>/dev/null
cat > "$folder/count.py" <<'PY'
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

print("torch", torch.__version__)


def count(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


BATCH, HEADS, TIME, DIM = 1, 2, 64, 16
q, k, v = (torch.randn(BATCH, HEADS, TIME, DIM, requires_grad=True) for _ in range(3))
matrix, vector = torch.eye(8), torch.ones(8)


def attention() -> None:
    F.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()


def by_products() -> None:
    with sdpa_kernel(SDPBackend.MATH):
        attention()


product = 2 * BATCH * HEADS * TIME * TIME * DIM
default, products = count(attention), count(by_products)
print(f"attention, forward and backward: {default}; with SDPBackend.MATH: {products} = {products / product} products of {product}")
small = {
    "matrix @ vector": count(lambda: matrix @ vector),
    "vector @ matrix": count(lambda: vector @ matrix),
    "vector @ vector": count(lambda: vector @ vector),
    "solve_triangular": count(lambda: torch.linalg.solve_triangular(matrix, matrix, upper=False)),
}
print(small)
assert default == 0 and products == 6 * product
assert list(small.values()) == [0, 128, 0, 0]
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/count.py" 2>/dev/null
