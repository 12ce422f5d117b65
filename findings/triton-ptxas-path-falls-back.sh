#!/usr/bin/env bash
# Guess: TRITON_PTXAS_PATH names the assembler; a path without a file is an error, and an empty value is as good as none.
# Fact: a path without a file is passed over, and Triton uses the ptxas of its own wheel, without a word. An empty value is taken for a
#   path that exists, and ends in PermissionError: [Errno 13] Permission denied: ''.
# Why it matters: the variable is set to get another assembler than Triton's, for instance where kernels are wrong from one and right from
#   another. After a typing error, an update of CUDA that moves it, or on a node where the module is not loaded, the kernels are those of
#   Triton's own again. Ask which one is in use (triton.backends.nvidia.compiler.get_ptxas), and compare its version.
# Seen with triton 3.7.1, no GPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install triton==3.7.1 setuptools==80.9.0 2>/dev/null
cat > "$folder/which.py" <<'PY'
import os
import sys

import triton
from triton.backends.nvidia.compiler import get_ptxas

missing = os.path.join(os.path.dirname(sys.argv[0]), "cuda-13/bin/ptxas")
own = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "ptxas")
print("triton", triton.__version__)
os.environ["TRITON_PTXAS_PATH"] = missing
found = get_ptxas(90)
same = os.path.realpath(found.path) == os.path.realpath(own)
print(f"a path without a file: version {found.version}, Triton's own: {same}")
os.environ["TRITON_PTXAS_PATH"] = ""
get_ptxas.cache_clear() if hasattr(get_ptxas, "cache_clear") else None
try:
    error = f"none: {get_ptxas(90).path}"
except OSError as raised:
    error = repr(raised)
print("an empty value:", error)
sys.exit(0 if same and not os.path.exists(missing) and error.startswith("PermissionError") else "the behaviour has changed")
PY
"$folder/venv/bin/python" "$folder/which.py"
