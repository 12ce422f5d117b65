#!/usr/bin/env bash
# Guess: under torch.autocast in bf16 the gradients of float32 parameters are float32 sums over the tokens, for a LayerNorm as for a Linear. The
#   CPU is the reference that kernels for the GPU are compared with.
# Fact: on a CPU, LayerNorm of a bf16 input adds its parameters' gradients in bf16, also where they are float32. 256 + 1 is 256 in bf16:
#   a bias to which each of 4,096 tokens adds 1 has the gradient 256, of 65,536 tokens as well, and with two threads 512. Weights lose half of
#   theirs. Embedding and indexing do so where the weights are bf16. Linear, rms_norm and group_norm do not.
# Why it matters: LayerNorm after a projection (of queries and keys, or after a block) has bf16 inputs under autocast. Its parameters are trained with
#   gradients that are short by a factor that depends on tokens and threads, and a test of a GPU kernel against the CPU blames the kernel.
#   Give LayerNorm float32 inputs.
# Seen with torch 2.13.0 (CPU build), the same with AVX512, AVX2 and without.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 numpy==2.1.3 2>/dev/null
cat > "$folder/gradients.py" <<'PY'
import torch
from torch import nn
from torch.nn import functional as F

WIDTH = 64
print("torch", torch.__version__.split("+")[0], "threads", torch.get_num_threads())


def sums(kind, tokens):
    """The gradients, for parameters and inputs of these types, of what adds a one for each token."""
    def ones(*shape):
        return torch.ones(*shape, dtype=kind)

    made = {}
    layer, x = nn.LayerNorm(WIDTH, dtype=kind), torch.randn(tokens, WIDTH).to(kind)
    layer(x).sum().backward()
    made["LayerNorm bias"] = layer.bias.grad
    layer = nn.Embedding(2, WIDTH, dtype=kind)
    layer(torch.zeros(tokens, dtype=torch.long)).sum().backward()
    made["Embedding"] = layer.weight.grad[0]
    table = ones(2, WIDTH).requires_grad_()
    table[torch.zeros(tokens, dtype=torch.long)].sum().backward()
    made["indexing"] = table.grad[0]
    layer = nn.Linear(WIDTH, WIDTH, dtype=kind)
    layer(ones(tokens, WIDTH)).sum().backward()
    made["Linear bias"] = layer.bias.grad
    weight = ones(WIDTH).requires_grad_()
    F.rms_norm(ones(tokens, WIDTH), (WIDTH,), weight, eps=1e-9).sum().backward()
    made["rms_norm"] = weight.grad
    bias = ones(WIDTH).requires_grad_()
    F.group_norm(x[:, :, None], 4, ones(WIDTH), bias).sum().backward()
    made["group_norm bias"] = bias.grad
    return ", ".join(f"{name} {grad.float().mean():.0f}" for name, grad in made.items())


for tokens in (256, 4096, 65536):
    for kind in (torch.float32, torch.bfloat16):
        print(f"{tokens} tokens, {kind}: {sums(kind, tokens)}")

torch.manual_seed(0)
project, norm, x = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), torch.randn(4096, WIDTH)
means = {}
for autocast in (False, True):
    norm.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = norm(project(x))
    (y.float() + y.float().square() / 2).sum().backward()
    for name, parameter in norm.named_parameters():
        assert parameter.grad.dtype is torch.float32
        means[name, autocast] = parameter.grad.mean().item()
for name in ("weight", "bias"):
    share = means[name, True] / means[name, False]
    words = "right to 1 %" if abs(share - 1) < 0.01 else f"below {'0.6' if share < 0.6 else '0.8'} of what it is"
    print(f"float32 {name} of LayerNorm under autocast: {words}")
PY
for threads in 1 2; do OMP_NUM_THREADS=$threads "$folder/venv/bin/python" "$folder/gradients.py" 2>/dev/null; done | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
torch 2.13.0 threads 1
256 tokens, torch.float32: LayerNorm bias 256, Embedding 256, indexing 256, Linear bias 256, rms_norm 256, group_norm bias 256
256 tokens, torch.bfloat16: LayerNorm bias 256, Embedding 256, indexing 256, Linear bias 256, rms_norm 256, group_norm bias 256
4096 tokens, torch.float32: LayerNorm bias 4096, Embedding 4096, indexing 4096, Linear bias 4096, rms_norm 4096, group_norm bias 4096
4096 tokens, torch.bfloat16: LayerNorm bias 256, Embedding 256, indexing 256, Linear bias 4096, rms_norm 4096, group_norm bias 4096
65536 tokens, torch.float32: LayerNorm bias 65536, Embedding 65536, indexing 65536, Linear bias 65536, rms_norm 65536, group_norm bias 65536
65536 tokens, torch.bfloat16: LayerNorm bias 256, Embedding 256, indexing 256, Linear bias 65536, rms_norm 65536, group_norm bias 65536
float32 weight of LayerNorm under autocast: below 0.6 of what it is
float32 bias of LayerNorm under autocast: below 0.6 of what it is
torch 2.13.0 threads 2
256 tokens, torch.float32: LayerNorm bias 256, Embedding 256, indexing 256, Linear bias 256, rms_norm 256, group_norm bias 256
256 tokens, torch.bfloat16: LayerNorm bias 256, Embedding 256, indexing 256, Linear bias 256, rms_norm 256, group_norm bias 256
4096 tokens, torch.float32: LayerNorm bias 4096, Embedding 4096, indexing 4096, Linear bias 4096, rms_norm 4096, group_norm bias 4096
4096 tokens, torch.bfloat16: LayerNorm bias 512, Embedding 256, indexing 256, Linear bias 4096, rms_norm 4096, group_norm bias 4096
65536 tokens, torch.float32: LayerNorm bias 65536, Embedding 65536, indexing 65536, Linear bias 65536, rms_norm 65536, group_norm bias 65536
65536 tokens, torch.bfloat16: LayerNorm bias 512, Embedding 256, indexing 256, Linear bias 65536, rms_norm 65536, group_norm bias 65536
float32 weight of LayerNorm under autocast: below 0.8 of what it is
float32 bias of LayerNorm under autocast: below 0.6 of what it is
SEEN
