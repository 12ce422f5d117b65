#!/usr/bin/env bash
# Guess: a cast from float32 to bfloat16 in Triton's interpreter (TRITON_INTERPRET=1) rounds to nearest, as in torch and in
#   the compiled kernel.
# Fact: it cuts the last 16 bits off. Every result is too small in magnitude or exact: the mean error of numbers around 1 is that of half
#   a last place, where rounding has none. The cast to float16 rounds. The compiled kernel has cvt.rn.bf16.f32.
# Why it matters: tolerances that tests in the interpreter need are twice those of the GPU, so that a real error hides below them. Values
#   that are stored in bf16 again and again, such as a state at the ends of chunks, drift towards zero in the interpreter alone.
# Seen with triton 3.7.1, static compilation for sm_90, no GPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 triton==3.7.1 numpy==2.1.3 setuptools==80.9.0 2>/dev/null
cat > "$folder/cast.py" <<'PY'
import os

import torch
import triton
import triton.language as tl


@triton.jit
def cast(x, out, n: tl.constexpr):
    place = tl.arange(0, n)
    tl.store(out + place, tl.load(x + place).to(out.dtype.element_ty))


if os.environ.get("TRITON_INTERPRET"):
    x = torch.rand(4096, generator=torch.Generator().manual_seed(0)) + 1
    for kind in (torch.bfloat16, torch.float16):
        out = torch.empty(4096, dtype=kind)
        cast[(1,)](x, out, 4096)
        ulp = torch.finfo(kind).eps
        for name, values in (("interpreter", out), ("torch", x.to(kind))):
            error = (values.double() - x.double()) / ulp
            print(f"{kind}, {name}: mean error {error.mean().abs():.1f}, largest {error.abs().max():.1f} units of the last place")
else:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(cast, {"x": "*fp32", "out": "*bf16", "n": "constexpr"}, constexprs={"n": 128})
    kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    print("compiled for sm_90:", *sorted({line.split()[0] for line in kernel.asm["ptx"].splitlines() if line.strip().startswith("cvt.")}))
PY
run() { TRITON_CACHE_DIR="$folder/cache" "$folder/venv/bin/python" "$folder/cast.py" 2>/dev/null; }
{
    echo "triton $("$folder/venv/bin/python" -c 'import triton; print(triton.__version__)')"
    TRITON_INTERPRET=1 run
    run
} | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
triton 3.7.1
torch.bfloat16, interpreter: mean error 0.5, largest 1.0 units of the last place
torch.bfloat16, torch: mean error 0.0, largest 0.5 units of the last place
torch.float16, interpreter: mean error 0.0, largest 0.5 units of the last place
torch.float16, torch: mean error 0.0, largest 0.5 units of the last place
compiled for sm_90: cvt.rn.bf16.f32
SEEN
