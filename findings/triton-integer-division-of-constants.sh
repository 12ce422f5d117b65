#!/usr/bin/env bash
# Guess: // and % in a Triton kernel are those of Python, rounded down, or those of C, rounded towards zero; it makes no difference whether a number
#   is an argument or a tl.constexpr.
# Fact: both occur in one kernel. Where an argument or a tensor takes part it is C's: -5 // 4 is -1 and -5 % 4 is -1. Two constexprs, or a
#   constexpr and a literal, are computed as Python does: -2 and 3. The interpreter (TRITON_INTERPRET=1) does the same as
#   compiled code.
# Why it matters: the first block of a window that begins before the sequence, (start - window) // BLOCK, is another one when `start` becomes a
#   constexpr, and another one than in the reference in Python. A ring index, (step - 1) % size, is -1 in the kernel, in front of the buffer. Add a
#   multiple of the divisor first, so that nothing is negative.
# Seen with triton 3.7.1, static compilation for sm_90, no GPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 triton==3.7.1 numpy==2.1.3 setuptools==80.9.0 2>/dev/null
cat > "$folder/divide.py" <<'PY'
import os
import re

import torch
import triton
import triton.language as tl


@triton.jit
def quotients(out, number, constant: tl.constexpr, divisor: tl.constexpr):
    tl.store(out, number // divisor)
    tl.store(out + 1, number % divisor)
    tl.store(out + 2, constant // divisor)
    tl.store(out + 3, constant % divisor)


if os.environ.get("TRITON_INTERPRET"):
    out = torch.zeros(4, dtype=torch.int32)
    quotients[(1,)](out, -5, -5, 4)
    print(f"interpreter: argument {out[0]} and {out[1]}, constexpr {out[2]} and {out[3]}")
else:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    print("triton", triton.__version__)
    print(f"python: -5 // 4 is {-5 // 4}, -5 % 4 is {-5 % 4}")
    kinds = {"out": "*i32", "number": "i32", "constant": "constexpr", "divisor": "constexpr"}
    source = ASTSource(quotients, kinds, {"constant": -5, "divisor": 4})
    text = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ttir"]
    of_argument = " and ".join(sorted(set(re.findall(r"arith\.(divsi|remsi|floordivsi)", text))))
    constants = re.findall(r"arith\.constant (-2|3|-1) : i32", text)
    print(f"compiled: argument {of_argument} of MLIR, which round towards zero, constexpr {' and '.join(sorted(constants))}")
PY
run() { TRITON_CACHE_DIR="$folder/cache" "$folder/venv/bin/python" "$folder/divide.py" 2>/dev/null; }
{ run; TRITON_INTERPRET=1 run; } | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
triton 3.7.1
python: -5 // 4 is -2, -5 % 4 is 3
compiled: argument divsi and remsi of MLIR, which round towards zero, constexpr -2 and 3
interpreter: argument -1 and -1, constexpr -2 and 3
SEEN
