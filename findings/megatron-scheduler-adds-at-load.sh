#!/usr/bin/env bash
# Guess: load_state_dict of megatron-core's OptimizerParamScheduler sets the schedule to where the checkpoint was, as that of torch does.
# Fact: it adds the steps of the checkpoint to those that the scheduler has taken. A new scheduler is right. One that is wound back from step
#   80 to a checkpoint of step 60 is at step 140, and one that loads the same state twice at 120. Nothing is raised.
# Why it matters: a run that goes back to its last checkpoint within the process, after a spike of the loss or a failed node, continues
#   at the learning rate of a step that lies far ahead, here the lowest one. Make a new scheduler, or set num_steps to 0 before loading.
# Seen with megatron-core 0.16.1 and torch 2.13.0 on a CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 megatron-core==0.16.1 numpy==2.1.3 2>/dev/null
cat > "$folder/schedule.py" <<'PY'
import math
import warnings
from importlib import metadata

warnings.filterwarnings("ignore")
import torch
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

LENGTH = 100
print("megatron-core", metadata.version("megatron-core"), "torch", torch.__version__.split("+")[0])


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


def megatron():
    schedule = OptimizerParamScheduler(
        made := optimizer(), init_lr=0.0, max_lr=1.0, min_lr=0.0, lr_warmup_steps=0, lr_decay_steps=LENGTH, lr_decay_style="cosine",
        start_wd=0.1, end_wd=0.1, wd_incr_steps=LENGTH, wd_incr_style="constant", use_checkpoint_opt_param_scheduler=False,
    )
    return made, schedule, lambda: schedule.step(1), lambda: schedule.num_steps


def of_torch():
    made = optimizer()
    schedule = torch.optim.lr_scheduler.LambdaLR(made, lambda step: (1 + math.cos(math.pi * min(step / LENGTH, 1))) / 2)
    return made, schedule, lambda: (made.step(), schedule.step()), lambda: schedule.last_epoch


for name, make in (("torch", of_torch), ("megatron-core", megatron)):
    for case in ("not interrupted", "loaded into a new one", "wound back from step 80", "loaded twice"):
        made, schedule, step, count = make()
        for _ in range(60):
            step()
        saved = schedule.state_dict()
        if case == "wound back from step 80":
            for _ in range(20):
                step()
            schedule.load_state_dict(saved)
        elif case != "not interrupted":
            made, schedule, step, count = make()
            for _ in range(1 + (case == "loaded twice")):
                schedule.load_state_dict(saved)
        at = count()
        step()
        print(f"{name}, {case}: step {at}, learning rate after one more {made.param_groups[0]['lr']:.3f}")
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/schedule.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
megatron-core 0.16.1 torch 2.13.0
torch, not interrupted: step 60, learning rate after one more 0.331
torch, loaded into a new one: step 60, learning rate after one more 0.331
torch, wound back from step 80: step 60, learning rate after one more 0.331
torch, loaded twice: step 60, learning rate after one more 0.331
megatron-core, not interrupted: step 60, learning rate after one more 0.331
megatron-core, loaded into a new one: step 60, learning rate after one more 0.331
megatron-core, wound back from step 80: step 140, learning rate after one more 0.000
megatron-core, loaded twice: step 120, learning rate after one more 0.000
SEEN
