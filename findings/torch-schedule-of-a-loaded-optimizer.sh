#!/usr/bin/env bash
# Guess: a new schedule scales the learning rate that the optimizer has when the schedule is made. A second phase (annealing, other data, a lower
#   rate) loads the optimizer's state, sets lr of each group to its own rate, and makes a new schedule.
# Fact: the first schedule of an optimizer notes `initial_lr` in its groups, state_dict saves it, and a new schedule does not replace it. LambdaLR,
#   SequentialLR and CosineAnnealingWarmRestarts scale `initial_lr`: the second phase runs at the rate of the first one. LinearLR, ConstantLR,
#   ExponentialLR, PolynomialLR and CosineAnnealingLR begin at lr. Nothing is said. The schedules of transformers are LambdaLR.
# Why it matters: a phase that was to run at a tenth of the rate runs at all of it, from its first step on, and undoes what the first phase reached.
#   lr is right where it is printed before the schedule is made. Delete `initial_lr` from the groups, or set it with lr.
# Seen with torch 2.13.0 (CPU build).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 numpy==2.1.3 2>/dev/null
cat > "$folder/phases.py" <<'PY'
import torch
from torch.optim import lr_scheduler as schedules

FIRST, SECOND = 1e-3, 1e-4
MAKE = {
    "LambdaLR": lambda made: schedules.LambdaLR(made, lambda step: 1 - step / 10),
    "SequentialLR": lambda made: schedules.SequentialLR(
        made, [schedules.LinearLR(made, 0.5, 1.0, 2), schedules.CosineAnnealingLR(made, 8)], [2]),
    "CosineAnnealingWarmRestarts": lambda made: schedules.CosineAnnealingWarmRestarts(made, 10),
    "LinearLR": lambda made: schedules.LinearLR(made, 1.0, 0.0, 10),
    "ConstantLR": lambda made: schedules.ConstantLR(made, 1.0, 10),
    "ExponentialLR": lambda made: schedules.ExponentialLR(made, 0.9),
    "PolynomialLR": lambda made: schedules.PolynomialLR(made, 10),
    "CosineAnnealingLR": lambda made: schedules.CosineAnnealingLR(made, 10),
}


def optimizer(rate):
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.ones(2)
    return torch.optim.AdamW([weight], lr=rate)


def rates(made, schedule, steps=3):
    used = []
    for _ in range(steps):
        used.append(made.param_groups[0]["lr"])
        made.step()
        schedule.step()
    return " ".join(f"{rate:.1e}" for rate in used)


first = optimizer(FIRST)
rates(first, schedules.LambdaLR(first, lambda step: 1 - step / 10))
saved = first.state_dict()
print("torch", torch.__version__.split("+")[0])
for name, make in MAKE.items():
    seen = []
    for case in ("nothing loaded", "loaded", "loaded, initial_lr deleted"):
        second = optimizer(SECOND)
        if case != "nothing loaded":
            second.load_state_dict(saved)
            for group in second.param_groups:
                group["lr"] = SECOND
                if case != "loaded":
                    del group["initial_lr"]
        seen.append(f"{case}: {rates(second, make(second))}")
    print(f"{name:27}", "; ".join(seen))
PY
"$folder/venv/bin/python" "$folder/phases.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
torch 2.13.0
LambdaLR                    nothing loaded: 1.0e-04 9.0e-05 8.0e-05; loaded: 1.0e-03 9.0e-04 8.0e-04; loaded, initial_lr deleted: 1.0e-04 9.0e-05 8.0e-05
SequentialLR                nothing loaded: 5.0e-05 7.5e-05 1.0e-04; loaded: 5.0e-04 7.5e-04 1.0e-03; loaded, initial_lr deleted: 5.0e-05 7.5e-05 1.0e-04
CosineAnnealingWarmRestarts nothing loaded: 1.0e-04 9.8e-05 9.0e-05; loaded: 1.0e-03 9.8e-04 9.0e-04; loaded, initial_lr deleted: 1.0e-04 9.8e-05 9.0e-05
LinearLR                    nothing loaded: 1.0e-04 9.0e-05 8.0e-05; loaded: 1.0e-04 9.0e-05 8.0e-05; loaded, initial_lr deleted: 1.0e-04 9.0e-05 8.0e-05
ConstantLR                  nothing loaded: 1.0e-04 1.0e-04 1.0e-04; loaded: 1.0e-04 1.0e-04 1.0e-04; loaded, initial_lr deleted: 1.0e-04 1.0e-04 1.0e-04
ExponentialLR               nothing loaded: 1.0e-04 9.0e-05 8.1e-05; loaded: 1.0e-04 9.0e-05 8.1e-05; loaded, initial_lr deleted: 1.0e-04 9.0e-05 8.1e-05
PolynomialLR                nothing loaded: 1.0e-04 9.0e-05 8.0e-05; loaded: 1.0e-04 9.0e-05 8.0e-05; loaded, initial_lr deleted: 1.0e-04 9.0e-05 8.0e-05
CosineAnnealingLR           nothing loaded: 1.0e-04 9.8e-05 9.0e-05; loaded: 1.0e-04 9.8e-05 9.0e-05; loaded, initial_lr deleted: 1.0e-04 9.8e-05 9.0e-05
SEEN
