#!/usr/bin/env bash
# Guess: gradient_clipping bounds the norm of the gradient of the whole model, with DeepSpeed's pipeline as without: a model that is cut into
#   two stages takes the same steps.
# Fact: in fp32 without ZeRO the norm is that of the first stage alone; weights of the other stages are taken for copies, and are scaled by the
#   norm of a gradient that they are no part of. A step in which they have all of the gradient is not clipped. In bf16 the norm is whole.
# Why it matters: a run in fp32 that serves as the reference for a pipeline in bf16, or that is debugged on small models, trains otherwise with
#   another number of stages, and an explosion in the last layers goes through. The loss without clipping is the same to the last digit.
# Seen with deepspeed 0.19.8, torch 2.13.0, two processes over gloo on a CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 deepspeed==0.19.8 numpy==2.1.3 2>/dev/null
cat > "$folder/clip.py" <<'PY'
import os

import torch

os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed
import deepspeed.ops
from deepspeed.pipe import LayerSpec, PipelineModule

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else a C++ operator is compiled first
deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
WIDTH, LIMIT = 8, 0.5


class Scaled(torch.nn.Module):
    """x + scale * W x, so that `scale` says which layer has the gradient."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale, self.inner = scale, torch.nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.scale * self.inner(x)


def step(scales: tuple[float, float], bf16: bool) -> float:
    """The norm of the change of all weights in a step of SGD at a rate of 1, which clipping bounds by LIMIT."""
    torch.manual_seed(0)
    model = PipelineModule(
        [LayerSpec(Scaled, scale) for scale in scales], num_stages=world, loss_fn=lambda out, target: (out * target).sum().float(),
        partition_method="uniform",
    )
    config = {
        "train_batch_size": 4, "train_micro_batch_size_per_gpu": 2, "gradient_clipping": LIMIT, "bf16": {"enabled": bf16},
        "zero_allow_untested_optimizer": True,
    }
    before = [weight.detach().float().clone() for weight in model.parameters()]
    engine, *_ = deepspeed.initialize(
        model=model, config=config, optimizer=torch.optim.SGD(model.parameters(), lr=1.0), dist_init_required=False
    )
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if bf16 else torch.float32
    batches = [tuple(torch.randn(2, WIDTH, generator=generator).to(dtype) for _ in range(2)) for _ in range(2)]
    engine.train_batch(data_iter=iter(batches))
    squares = sum((weight.float() - old).square().sum() for weight, old in zip(model.parameters(), before, strict=True)).double()
    torch.distributed.all_reduce(squares)
    return squares.sqrt().item()


if rank == 0:
    print(f"deepspeed {deepspeed.__version__}, torch {torch.__version__.split('+')[0]}, stages: {world}, limit {LIMIT}")
for bf16 in (False, True):
    for where, scales in (("both layers", (1.0, 1.0)), ("the last layer", (0.01, 1.0))):
        size = step(scales, bf16)
        if rank == 0:
            print(f"{'bf16' if bf16 else 'fp32'}, gradient in {where}: the step has a norm of {size:.1f}")
torch.distributed.barrier()
os._exit(0)  # destructors of the engines print at the end of the interpreter
PY
for stages in 1 2; do
    OMP_NUM_THREADS=1 "$folder/venv/bin/python" -m torch.distributed.run --nproc-per-node $stages --standalone "$folder/clip.py" 2>"$folder/err" |
        { grep -E '^(deepspeed 0|fp32|bf16)' || cat "$folder/err"; }
done | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
deepspeed 0.19.8, torch 2.13.0, stages: 1, limit 0.5
fp32, gradient in both layers: the step has a norm of 0.5
fp32, gradient in the last layer: the step has a norm of 0.5
bf16, gradient in both layers: the step has a norm of 0.5
bf16, gradient in the last layer: the step has a norm of 0.5
deepspeed 0.19.8, torch 2.13.0, stages: 2, limit 0.5
fp32, gradient in both layers: the step has a norm of 0.6
fp32, gradient in the last layer: the step has a norm of 9.7
bf16, gradient in both layers: the step has a norm of 0.5
bf16, gradient in the last layer: the step has a norm of 0.5
SEEN
