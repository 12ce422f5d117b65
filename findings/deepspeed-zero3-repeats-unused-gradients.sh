#!/usr/bin/env bash
# Guess: a weight that a step does not use has no gradient in it, or zeros: with a plain optimizer it stays where it is, and each stage of ZeRO
#   does the same.
# Fact: under ZeRO 3 the weight gets the gradient of the last step that used it once more, in every step until it is used again. A weight that was
#   used once moves on for good. Stages 0 to 2 give zeros. In fp32 and bf16, with one process or more; nothing is said.
# Why it matters: models with a part that only some steps run (a number of passes drawn by step, experts, layers dropped at random, an auxiliary
#   loss every so often, several tasks by turns) train such parts on old gradients, and the gradient norm counts them. Zero times the
#   output of such a part in the loss gives them their zeros.
# Seen with deepspeed 0.19.8, torch 2.13.0 on a CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 deepspeed==0.19.8 numpy==2.1.3 2>/dev/null
cat > "$folder/unused.py" <<'PY'
import os

import torch

os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed
import deepspeed.ops

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else a C++ operator is compiled first
deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
rank = torch.distributed.get_rank()
USED = (True, False, False, True, False)


class Sometimes(torch.nn.Module):
    """The sum of one layer, and of another in some steps; each element of a weight then has a gradient of 1."""

    def __init__(self) -> None:
        super().__init__()
        self.always = torch.nn.Linear(2, 2, bias=False)
        self.sometimes = torch.nn.Linear(2, 2, bias=False)
        torch.nn.init.zeros_(self.sometimes.weight)

    def forward(self, x: torch.Tensor, used: bool) -> torch.Tensor:
        return self.always(x).sum() + (self.sometimes(x).sum() if used else 0)


def moves(stage: int, bf16: bool, term: bool = False) -> list[float]:
    """How far a step of SGD at a rate of 1 moves the layer that only some steps use. `term`: the loss has zero times its weights."""
    model = Sometimes()
    config = {
        "train_micro_batch_size_per_gpu": 1, "gradient_clipping": 0.0, "zero_optimization": {"stage": stage},
        "bf16": {"enabled": bf16}, "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0), config=config, dist_init_required=False
    )
    x, at, found = torch.ones(1, 2, dtype=torch.bfloat16 if bf16 else torch.float32), 0.0, []
    for used in USED:
        loss = engine(x, used)
        if term and not used:
            loss = loss + 0 * model.sometimes(x).sum()
        engine.backward(loss)
        engine.step()
        with deepspeed.zero.GatheredParameters([model.sometimes.weight], enabled=stage == 3):
            now = model.sometimes.weight[0, 0].item()
        found.append(at - now)
        at = now
    return found


if rank == 0:
    print(f"deepspeed {deepspeed.__version__}, torch {torch.__version__.split('+')[0]}: steps that use it {[int(used) for used in USED]}")
for stage in (0, 1, 2, 3):
    for bf16 in (False, True):
        found = moves(stage, bf16)
        if rank == 0:
            print(f"ZeRO {stage}, {'bf16' if bf16 else 'fp32'}: moves {found}")
found = moves(3, False, term=True)
if rank == 0:
    print(f"ZeRO 3, fp32, zero times its output in the loss: moves {found}")
torch.distributed.barrier()
os._exit(0)  # destructors of the engines print at the end of the interpreter
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -m torch.distributed.run --nproc-per-node 2 --standalone "$folder/unused.py" 2>"$folder/err" |
    { grep -E '^(deepspeed 0|ZeRO)' || cat "$folder/err"; } | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
deepspeed 0.19.8, torch 2.13.0: steps that use it [1, 0, 0, 1, 0]
ZeRO 0, fp32: moves [1.0, 0.0, 0.0, 1.0, 0.0]
ZeRO 0, bf16: moves [1.0, 0.0, 0.0, 1.0, 0.0]
ZeRO 1, fp32: moves [1.0, 0.0, 0.0, 1.0, 0.0]
ZeRO 1, bf16: moves [1.0, 0.0, 0.0, 1.0, 0.0]
ZeRO 2, fp32: moves [1.0, 0.0, 0.0, 1.0, 0.0]
ZeRO 2, bf16: moves [1.0, 0.0, 0.0, 1.0, 0.0]
ZeRO 3, fp32: moves [1.0, 1.0, 1.0, 1.0, 1.0]
ZeRO 3, bf16: moves [1.0, 1.0, 1.0, 1.0, 1.0]
ZeRO 3, fp32, zero times its output in the loss: moves [1.0, 0.0, 0.0, 1.0, 0.0]
SEEN
