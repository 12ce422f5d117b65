#!/usr/bin/env bash
# Guess: each parameter group of an optimizer has a learning rate of its own, and a schedule with a function for each group sets each of them.
#   A tensor as lr, which torch.compile and capturable=True want so that a new rate does not compile or record the step anew, is no other.
# Fact: lr=torch.tensor(...) as the default of the optimizer is one tensor in all groups, and schedules write into it: every group has the rate that was
#   written last, that of the last group. A loop that sets group["lr"].fill_(...) does so as well. Tensors given to each group, and
#   Python numbers, are kept apart. get_last_lr() returns the tensors themselves, so that a log of them changes afterwards.
# Why it matters: a recipe with a lower rate for embeddings, or none for frozen weights, trains all weights at one rate as soon as lr becomes a tensor
#   to make the step faster, and the log shows the same rate for all steps. After a checkpoint is loaded the groups are still one.
# Seen with torch 2.13.0 (CPU build).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 numpy==2.1.3 2>/dev/null
cat > "$folder/groups.py" <<'PY'
import copy

import torch

FACTORS = (lambda step: 1.0 / (1 + step), lambda step: 0.1 / (1 + step))
print("torch", torch.__version__.split("+")[0], "rate 1, the second group at a tenth of it, both divided by the number of the step")


def make(rate, in_groups):
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in FACTORS]
    groups = [{"params": [weight], **({"lr": copy.deepcopy(rate)} if in_groups else {})} for weight in weights]
    return torch.optim.AdamW(groups, lr=rate, weight_decay=0.0)


def steps(optimizer, schedule, count, kept):
    for _ in range(count):
        for group in optimizer.param_groups:
            group["params"][0].grad = torch.ones(1)
        optimizer.step()
        schedule.step()
        kept.append(schedule.get_last_lr()[0])


def shown(values):
    return " and ".join(f"{value:.3f}" for value in map(float, values))


for name, rate, in_groups in (
    ("a number", 1.0, False), ("a tensor", torch.tensor(1.0), False), ("a tensor for each group", torch.tensor(1.0), True),
):
    optimizer, kept = make(copy.deepcopy(rate), in_groups), []
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, list(FACTORS))
    first = shown(group["lr"] for group in optimizer.param_groups)
    steps(optimizer, schedule, 3, kept)
    print(f"{name}: rates {first}, after three steps {shown(group['lr'] for group in optimizer.param_groups)}")
    print(f"    weights {shown(group['params'][0].detach() for group in optimizer.param_groups)}, log of the first group {shown(kept)}")
    loaded = make(copy.deepcopy(rate), in_groups)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    print(f"    one tensor after loading: {loaded.param_groups[0]['lr'] is loaded.param_groups[1]['lr'] and torch.is_tensor(rate)}")
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/groups.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
torch 2.13.0 rate 1, the second group at a tenth of it, both divided by the number of the step
a number: rates 1.000 and 0.100, after three steps 0.250 and 0.025
    weights -1.833 and -0.183, log of the first group 0.500 and 0.333 and 0.250
    one tensor after loading: False
a tensor: rates 0.100 and 0.100, after three steps 0.025 and 0.025
    weights -0.183 and -0.183, log of the first group 0.050 and 0.033 and 0.025
    one tensor after loading: True
a tensor for each group: rates 1.000 and 0.100, after three steps 0.250 and 0.025
    weights -1.833 and -0.183, log of the first group 0.500 and 0.333 and 0.250
    one tensor after loading: False
SEEN
