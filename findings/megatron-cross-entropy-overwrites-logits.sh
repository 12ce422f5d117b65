#!/usr/bin/env bash
# Guess: megatron-core's vocab_parallel_cross_entropy reads its logits, as torch's cross entropy does. A z-loss, an entropy or an
#   accuracy with probabilities may be taken from the same logits afterwards.
# Fact: it works in place on fp32 logits and leaves their softmax there. bf16 logits are copied first and stay as they are, so a
#   change of dtype changes what the next line reads. Nothing is raised; arg-max stays right.
# Why it matters: a z-loss after it is a number of the right size and means nothing: 5.9 instead of 23.0 below. sleeptrain computes
#   what it needs from logits before the call, or in tiles of its own.
# Seen with megatron-core 0.16.1 and torch 2.13.0 on a CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 megatron-core==0.16.1 numpy==2.1.3 2>/dev/null
cat > "$folder/logits.py" <<'PY'
import warnings

warnings.filterwarnings("ignore")
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
parallel_state.initialize_model_parallel(create_gloo_process_groups=False)
torch.manual_seed(0)
given, targets = 3 * torch.randn(4, 1, 10), torch.randint(10, (4, 1))


def z_loss(logits):
    return logits.logsumexp(-1).square().mean().item()


for dtype in (torch.float32, torch.bfloat16):
    logits = given.to(dtype).clone()
    vocab_parallel_cross_entropy(logits, targets)
    if torch.equal(logits, given.to(dtype)):
        print(f"{dtype}: the logits are unchanged")
    elif torch.allclose(logits, given.softmax(-1)):
        print(f"{dtype}: the logits are now their softmax; z-loss {z_loss(given):.1f} before, {z_loss(logits):.1f} after")
PY
"$folder/venv/bin/python" "$folder/logits.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
torch.float32: the logits are now their softmax; z-loss 23.0 before, 5.9 after
torch.bfloat16: the logits are unchanged
SEEN
