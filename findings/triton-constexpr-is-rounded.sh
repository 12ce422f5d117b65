#!/usr/bin/env bash
# Guess: x * s in a Triton kernel is the same product whether s is an argument, a tl.constexpr or a literal: a bf16 tensor times a float.
# Fact: an argument is float32, and so is the product. A constexpr or a literal takes the type of the tensor: it is rounded to bf16 first, and
#   the product is bf16 as well. log2(e) / sqrt(128), the scale of attention with heads of 128, becomes 0.12793 instead of 0.12752.
# Why it matters: making a scale a constexpr, so that the compiler can fold it, changes every logit by 0.3 % and rounds it to
#   bf16: softmax has another temperature than the reference. Cast first: x.to(tl.float32) * s.
# Seen with triton 3.7.1, static compilation for sm_90, no GPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install triton==3.7.1 setuptools==80.9.0 2>/dev/null
cat > "$folder/scale.py" <<'PY'
import math
import re

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def argument(x, out, s, n: tl.constexpr):
    place = tl.arange(0, n)
    tl.store(out + place, (tl.load(x + place) * s).to(tl.float32))


@triton.jit
def constant(x, out, s: tl.constexpr, n: tl.constexpr):
    place = tl.arange(0, n)
    tl.store(out + place, (tl.load(x + place) * s).to(tl.float32))


@triton.jit
def literal(x, out, n: tl.constexpr):
    place = tl.arange(0, n)
    tl.store(out + place, (tl.load(x + place) * 0.12751741).to(tl.float32))


@triton.jit
def cast(x, out, s: tl.constexpr, n: tl.constexpr):
    place = tl.arange(0, n)
    tl.store(out + place, tl.load(x + place).to(tl.float32) * s)


print("triton", triton.__version__)
scale = math.log2(math.e) / math.sqrt(128)
print(f"the scale: {scale:.5f}")
for kind in ("bf16", "fp16", "fp32"):
    for kernel, given in ((argument, {"s": "fp32"}), (literal, {}), (constant, {"s": "constexpr"}), (cast, {"s": "constexpr"})):
        types = {"x": f"*{kind}", "out": "*fp32", **given, "n": "constexpr"}
        constants = {"n": 128, "s": scale} if "constexpr" in given.values() else {"n": 128}
        text = triton.compile(ASTSource(kernel, types, constants), target=GPUTarget("cuda", 90, 32)).asm["ttir"]
        product = re.search(r"arith\.mulf .* tensor<128x(\w+)>", text)[1]
        value = re.search(r"arith\.constant dense<(\S+)> : tensor<128x\w*f\d+>", text)
        print(f"{kind}, {kernel.__name__:8}: product {product:4}", f"scale {float(value[1]):.5f}" if value else "scale as it is given")
PY
TRITON_CACHE_DIR="$folder/cache" "$folder/venv/bin/python" "$folder/scale.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
triton 3.7.1
the scale: 0.12752
bf16, argument: product f32  scale as it is given
bf16, literal : product bf16 scale 0.12793
bf16, constant: product bf16 scale 0.12793
bf16, cast    : product f32  scale 0.12752
fp16, argument: product f32  scale as it is given
fp16, literal : product f16  scale 0.12756
fp16, constant: product f16  scale 0.12756
fp16, cast    : product f32  scale 0.12752
fp32, argument: product f32  scale as it is given
fp32, literal : product f32  scale 0.12752
fp32, constant: product f32  scale 0.12752
fp32, cast    : product f32  scale 0.12752
SEEN
