#!/usr/bin/env bash
# Guess: a kernel that triton.compile accepts for sm_90 can run there; tiles that do not fit on the device fail to compile, as too many
#   registers or an unknown instruction do.
# Fact: shared memory is part of the launch, not of the binary (`.extern .shared`, without a size). Triton and ptxas compile a product with
#   six stages of 128 x 256 x 64 for sm_90 that needs 288 KB; a block there can have 227 KB. The limit is asked for when the kernel is first
#   loaded on a GPU (compiler.py, `_init_handles`), which raises OutOfResources then.
# Why it matters: a launch configuration that CI compiles for an architecture without a GPU is no valid configuration. Compare
#   `metadata.shared` with the device's limit yourself. Pipelining multiplies it by num_stages, so that a change of one number breaks it.
# Seen with triton 3.7.1, static compilation for sm_90, no GPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install triton==3.7.1 setuptools==80.9.0 2>/dev/null
cat > "$folder/stages.py" <<'PY'
import re
import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

LIMIT = 227 * 1024  # CUDA C++ programming guide, compute capability 9.0


@triton.jit
def product(a, b, out, depth, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    rows, columns, inner = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    total = tl.zeros((M, N), tl.float32)
    for first in range(0, depth, K):
        left = tl.load(a + rows[:, None] * 4096 + first + inner[None, :])
        right = tl.load(b + (first + inner)[:, None] * 4096 + columns[None, :])
        total = tl.dot(left, right, total)
    tl.store(out + rows[:, None] * 4096 + columns[None, :], total)


types = {"a": "*bf16", "b": "*bf16", "out": "*fp32", "depth": "i32", "M": "constexpr", "N": "constexpr", "K": "constexpr"}
aligned = {(i,): [["tt.divisibility", 16]] for i in range(4)}
print("triton", triton.__version__)
found = {}
for stages in (3, 6):
    source = ASTSource(product, types, constexprs={"M": 128, "N": 256, "K": 64}, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8, "num_stages": stages})
    found[stages] = compiled.metadata.shared
    declared = re.findall(r"\.extern \.shared[^;]*;", compiled.asm["ptx"])
    print(f"num_stages={stages}: compiled, {len(compiled.asm['cubin'])} bytes; shared memory {compiled.metadata.shared} of {LIMIT}; {declared}")
sys.exit(0 if found[3] <= LIMIT < found[6] else "the behaviour has changed")
PY
"$folder/venv/bin/python" "$folder/stages.py"
