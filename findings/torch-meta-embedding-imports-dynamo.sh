#!/usr/bin/env bash
# Guess: modules on the meta device cost nothing: there are no values, so that counting the parameters of a large model is instant.
# Fact: nn.Embedding draws its values with normal_, which on meta is a reference in Python that imports torch._dynamo at its first call,
#   and with it sympy, Triton if it is installed, and torch's ONNX exporter: 824 modules beside the 1,113 of `import torch`. nn.Linear draws
#   with uniform_, which does not. torch.optim.AdamW imports torch._dynamo too, at the first optimizer, whether or not anything is compiled.
# Why it matters: a planner, a converter or --help that builds models on meta to count them starts a second or more later. An
#   embedding whose reset_parameters does nothing avoids it; values that are loaded or drawn later need no first ones anyway.
# Seen with torch 2.13.0 (CPU build).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 numpy==2.1.3 2>/dev/null
cat > "$folder/modules.py" <<'PY'
import sys

import torch


class Quiet(torch.nn.Embedding):
    def reset_parameters(self) -> None:
        pass


def embedding(kind: type[torch.nn.Embedding]) -> None:
    with torch.device("meta"):
        kind(1000, 64)


def linear() -> None:
    with torch.device("meta"):
        torch.nn.Linear(64, 64)


WORK = {
    "nn.Linear on meta": linear,
    "nn.Embedding on meta": lambda: embedding(torch.nn.Embedding),
    "nn.Embedding on meta without reset_parameters": lambda: embedding(Quiet),
    "nn.Embedding on the CPU": lambda: torch.nn.Embedding(1000, 64),
    "torch.optim.AdamW": lambda: torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))]),
}
before = set(sys.modules)
WORK[sys.argv[1]]()
after = set(sys.modules) - before
print(f"{sys.argv[1]}: {len(after)} more modules than the {len(before)} of torch; torch._dynamo: {'torch._dynamo' in after}, sympy: {'sympy' in after}")
PY
echo "torch $("$folder/venv/bin/python" -c 'import torch; print(torch.__version__)')"
for work in "nn.Linear on meta" "nn.Embedding on meta" "nn.Embedding on meta without reset_parameters" "nn.Embedding on the CPU" "torch.optim.AdamW"; do
    "$folder/venv/bin/python" "$folder/modules.py" "$work" | tee -a "$folder/output"
done
[ "$(grep -c 'torch._dynamo: True, sympy: True' "$folder/output")" = 2 ]
grep -q '^nn.Embedding on meta: .* torch._dynamo: True' "$folder/output"
grep -q '^torch.optim.AdamW: .* torch._dynamo: True' "$folder/output"
