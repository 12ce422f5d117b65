#!/usr/bin/env bash
# Guess: the interpreter (TRITON_INTERPRET=1) and compiled code agree about NaN, so that a NaN that a test on a CPU sees is seen on a GPU.
# Fact: tl.maximum and tl.minimum of a NaN and a number are NaN in the interpreter, as in NumPy. Their default is
#   PropagateNan.NONE, and the compiled kernel has max.f32 and min.f32, which by NVIDIA's description of PTX return the number.
#   With propagate_nan=tl.PropagateNan.ALL the kernel has max.NaN.f32. tl.max, the reduction, drops a NaN in both.
# Why it matters: a kernel that clamps or takes a running maximum (online softmax, a clipped gate) turns a NaN of a broken run into a
#   number on the GPU, where the tests in the interpreter show that it comes through.
# Seen with triton 3.7.1, static compilation for sm_90, no GPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 triton==3.7.1 numpy==2.1.3 setuptools==80.9.0 2>/dev/null
cat > "$folder/nan.py" <<'PY'
import os

import torch
import triton
import triton.language as tl


@triton.jit
def extremes(x, out):
    first, second = tl.load(x), tl.load(x + 1)
    tl.store(out, tl.maximum(first, second))
    tl.store(out + 1, tl.minimum(first, second))
    tl.store(out + 2, tl.maximum(first, second, propagate_nan=tl.PropagateNan.ALL))
    tl.store(out + 3, tl.max(tl.load(x + tl.arange(0, 2)), 0))


if os.environ.get("TRITON_INTERPRET"):
    for x in ([float("nan"), 1.0], [1.0, float("nan")]):
        out = torch.zeros(4)
        extremes[(1,)](torch.tensor(x), out)
        print(f"interpreter, {x}: maximum {out[0]}, minimum {out[1]}, maximum ALL {out[2]}, tl.max {out[3]}")
else:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = triton.compile(ASTSource(extremes, {"x": "*fp32", "out": "*fp32"}), target=GPUTarget("cuda", 90, 32))
    found = [line.split()[0] for line in kernel.asm["ptx"].splitlines() if line.strip().startswith(("max.", "min."))]
    print("compiled for sm_90:", *sorted(found))
PY
run() { TRITON_CACHE_DIR="$folder/cache" "$folder/venv/bin/python" "$folder/nan.py"; }
echo "triton $("$folder/venv/bin/python" -c 'import triton; print(triton.__version__)')"
TRITON_INTERPRET=1 run 2>/dev/null | tee "$folder/output"
run 2>/dev/null | tee -a "$folder/output"
[ "$(grep -c 'maximum nan, minimum nan, maximum ALL nan, tl.max 1.0' "$folder/output")" = 2 ]
grep -q 'compiled for sm_90: max.NaN.f32 max.f32 max.f32 min.f32' "$folder/output"
