#!/usr/bin/env bash
# Guess: tl.sum of a bf16 tensor adds in float32, as torch.sum does and as tl.cumsum of bf16 does, and so it does in the interpreter.
# Fact: compiled for sm_90 it adds in bf16, with 8 significant bits, and returns bf16. The interpreter (TRITON_INTERPRET=1) adds the 16 bits of
#   each number as integers: 4,096 ones are 0, two ones are 1.7e38. Nothing is raised. fp16 is added as fp16 in both.
# Why it matters: a norm, a mean or a gradient of a bias that sums what it has loaded loses all but 2 or 3 digits on the GPU. A test in the
#   interpreter of inputs in float32 or fp16 shows neither. Cast what is loaded: tl.sum(x.to(tl.float32)).
# Seen with triton 3.7.1, static compilation for sm_90, no GPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 triton==3.7.1 numpy==2.1.3 setuptools==80.9.0 2>/dev/null
cat > "$folder/sums.py" <<'PY'
import os
import re

import torch
import triton
import triton.language as tl


@triton.jit
def total(x, out, n: tl.constexpr):
    tl.store(out, tl.sum(tl.load(x + tl.arange(0, n))).to(tl.float32))


@triton.jit
def total_of_cast(x, out, n: tl.constexpr):
    tl.store(out, tl.sum(tl.load(x + tl.arange(0, n)).to(tl.float32)))


@triton.jit
def running(x, out, n: tl.constexpr):
    place = tl.arange(0, n)
    tl.store(out + place, tl.cumsum(tl.load(x + place)).to(tl.float32))


def interpreted(kernel, values):
    out = torch.zeros(1)
    kernel[(1,)](values, out, len(values))
    return f"{out.item():.4g}"


if os.environ.get("TRITON_INTERPRET"):
    for kind in (torch.bfloat16, torch.float16):
        ones, pair = torch.ones(4096, dtype=kind), torch.ones(2, dtype=kind)
        print(f"interpreter, {kind}: 4,096 ones {interpreted(total, ones)}, 2 ones {interpreted(total, pair)},", end=" ")
        print(f"4,096 ones cast first {interpreted(total_of_cast, ones)}")
else:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    for kernel, name in ((total, "tl.sum"), (total_of_cast, "tl.sum, cast first"), (running, "tl.cumsum")):
        for kind in ("bf16", "fp16"):
            source = ASTSource(kernel, {"x": f"*{kind}", "out": "*fp32", "n": "constexpr"}, {"n": 1024})
            text = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
            print(f"compiled, {name} of {kind}:", *sorted(set(re.findall(r"add(?:\.rn)?\.(?:bf16|f16|f32)", text))))
PY
run() { TRITON_CACHE_DIR="$folder/cache" "$folder/venv/bin/python" "$folder/sums.py" 2>/dev/null; }
{
    echo "triton $("$folder/venv/bin/python" -c 'import triton; print(triton.__version__)')"
    TRITON_INTERPRET=1 run
    run
} | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
triton 3.7.1
interpreter, torch.bfloat16: 4,096 ones 0, 2 ones 1.701e+38, 4,096 ones cast first 4096
interpreter, torch.float16: 4,096 ones 4096, 2 ones 2, 4,096 ones cast first 4096
compiled, tl.sum of bf16: add.bf16
compiled, tl.sum of fp16: add.f16
compiled, tl.sum, cast first of bf16: add.f32
compiled, tl.sum, cast first of fp16: add.f32
compiled, tl.cumsum of bf16: add.f32
compiled, tl.cumsum of fp16: add.f16
SEEN
