#!/usr/bin/env bash
# Guess: gradient accumulation adds up the micro-batches of a step. Offloading the optimizer to the host changes where it runs, and no result.
# Fact: with offload_optimizer, ZeRO 2 and 3 hand a gradient over in the last micro-batch of a step alone, for the weights that this micro-batch
#   uses. A weight that an earlier one used and the last one does not gets no gradient in this step: its part is lost, in the norm, too.
#   Without offload, and with ZeRO 1 in bf16, it counts. Nothing is said.
# Why it matters: the same recipe, moved to offload since memory is short, trains experts, adapters, towers of a modality and every other part that
#   some micro-batches leave out on a fraction of their data.
# Seen with deepspeed 0.19.8, torch 2.13.0 on a CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 deepspeed==0.19.8 numpy==2.1.3 2>/dev/null
cat > "$folder/lost.py" <<'PY'
import os

import torch

os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed
import deepspeed.ops

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else a C++ operator is compiled first
deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
rank = torch.distributed.get_rank()


class Towers(torch.nn.Module):
    """The sum of one layer, and of another for some micro-batches; each element of a weight then has a gradient of 1."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.image = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)
        torch.nn.init.zeros_(self.image.weight)

    def forward(self, x: torch.Tensor, image: bool) -> torch.Tensor:
        return self.text(x).sum() + (self.image(x).sum() if image else 0)


def move(stage: int, offload: bool, uses: tuple[bool, bool]) -> float:
    """How far a step of SGD at a rate of 1 moves the layer that only some of its two micro-batches use."""
    model = Towers()
    zero = {"stage": stage, **({"offload_optimizer": {"device": "cpu"}} if offload else {})}
    config = {
        "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 2, "gradient_clipping": 0.0, "zero_optimization": zero,
        "bf16": {"enabled": True}, "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False,
    }
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0), config=config, dist_init_required=False
    )
    for image in uses:
        engine.backward(engine(torch.ones(1, 2, dtype=torch.bfloat16), image))
        engine.step()
    with deepspeed.zero.GatheredParameters([model.image.weight], enabled=stage == 3):
        return 0.0 - model.image.weight[0, 0].item()


if rank == 0:
    print(f"deepspeed {deepspeed.__version__}, torch {torch.__version__.split('+')[0]}, two micro-batches in a step")
for stage in (1, 2, 3):
    for offload in (False, True):
        first, last = move(stage, offload, (True, False)), move(stage, offload, (False, True))
        if rank == 0:
            print(f"ZeRO {stage}, offload {offload}: moves {first} if the first micro-batch uses the layer, {last} if the last one does")
torch.distributed.barrier()
os._exit(0)  # destructors of the engines print at the end of the interpreter
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -m torch.distributed.run --nproc-per-node 2 --standalone "$folder/lost.py" 2>"$folder/err" |
    { grep -E '^(deepspeed 0|ZeRO)' || cat "$folder/err"; } | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
deepspeed 0.19.8, torch 2.13.0, two micro-batches in a step
ZeRO 1, offload False: moves 0.5 if the first micro-batch uses the layer, 0.5 if the last one does
ZeRO 1, offload True: moves 0.5 if the first micro-batch uses the layer, 0.5 if the last one does
ZeRO 2, offload False: moves 0.5 if the first micro-batch uses the layer, 0.5 if the last one does
ZeRO 2, offload True: moves 0.0 if the first micro-batch uses the layer, 0.5 if the last one does
ZeRO 3, offload False: moves 0.5 if the first micro-batch uses the layer, 0.5 if the last one does
ZeRO 3, offload True: moves 0.0 if the first micro-batch uses the layer, 0.5 if the last one does
SEEN
