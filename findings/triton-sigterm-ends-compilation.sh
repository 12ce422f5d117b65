#!/usr/bin/env bash
# Guess: a program that handles SIGTERM (a training that saves first) survives it at any time, also when a scheduler sends it to
#   every process of the job, since Triton's compiler is a library in the program.
# Fact: Triton runs ptxas as a child process in the same process group. It dies of the same SIGTERM, and triton.compile
#   raises PTXASError "Internal Triton PTX codegen error ... Repro command" in the program that had handled its own signal.
#   There is no retry. With SIGTERM blocked (pthread_sigmask) around the compilation, ptxas inherits the mask, ends its work, and
#   the handler runs afterwards.
# Why it matters: a preempted job that is compiling its first step ends with an error instead of a save and a requeue.
# Seen with triton 3.7.1 on Linux without a GPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check triton==3.7.1 setuptools==80.9.0 2>/dev/null
cat > "$folder/job.py" <<'PYTHON'
import signal
import sys
from contextlib import contextmanager, nullcontext

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def double(x, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(x + at, 2 * tl.load(x + at))


@contextmanager
def blocked():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    yield
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


handled = []
signal.signal(signal.SIGTERM, lambda number, frame: handled.append(number))
source = ASTSource(double, {"x": "*fp32", "SIZE": "constexpr"}, constexprs={"SIZE": 64})
try:
    with blocked() if sys.argv[1] == "blocked" else nullcontext():
        triton.compile(source, target=GPUTarget("cuda", 90, 32))
    print("compiled, handled", handled)
except Exception as error:
    print(type(error).__name__, "handled", handled)
PYTHON
# An assembler that stands for the moment: it sends SIGTERM to its process group, as scancel does to a job, and then works.
ptxas=$("$folder/venv/bin/python" -c 'from triton.backends.nvidia.compiler import get_ptxas as g; p = g(90); print(getattr(p, "path", p))')
cat > "$folder/ptxas" <<SHELL
#!/bin/sh
case "\$*" in *--version*) ;; *) kill -TERM 0 ;; esac
exec "$ptxas" "\$@"
SHELL
chmod +x "$folder/ptxas"
run() {
    TRITON_PTXAS_PATH="$folder/ptxas" TRITON_CACHE_DIR="$folder/cache-$1" setsid --wait "$folder/venv/bin/python" "$folder/job.py" "$1" 2>/dev/null |
        grep -a -E 'handled' || true
}
open=$(run open)
shielded=$(run blocked)
echo "SIGTERM while ptxas runs:            $open"
echo "the same with SIGTERM blocked:       $shielded"
[ "$open" = "PTXASError handled [15]" ]
[ "$shielded" = "compiled, handled [15]" ]
