#!/usr/bin/env bash
# Guess: an optimizer of OLMo-core that skips a step for its loss or gradient norm leaves weights and moments as they were, above all where the
#   gradient is not finite, and goes on with the next step.
# Fact: the step is computed and multiplied by zero, and zero times inf or NaN is NaN: SkipStepAdamW reports the step as skipped, and the weights
#   with such a gradient are NaN. What is not finite also enters the mean that later steps are compared with, so that each of the next 128 is
#   skipped. A finite spike is skipped as one would expect.
# Why it matters: the case that a guard is for ends the run, with a log that says that the step was skipped. A guard of one's own must replace what is
#   not finite before the optimizer sees it.
# Seen with ai2-olmo-core 3.0.0, torch 2.13.0 on a CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 ai2-olmo-core==3.0.0 numpy==2.1.3 dill==0.4.0 2>/dev/null
cat > "$folder/skips.py" <<'PY'
from importlib import metadata

import torch
from olmo_core.optim import SkipStepAdamW

print("ai2-olmo-core", metadata.version("ai2-olmo-core"))
STEPS, BAD = 260, 100
for name, value in {"1e6": 1e6, "inf": float("inf"), "NaN": float("nan")}.items():
    for foreach in (False, True):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.ones(4))
        optimizer = SkipStepAdamW([weight], foreach=foreach)
        skipped = []
        for step in range(STEPS):
            weight.grad = torch.ones(4) + 0.1 * torch.randn(4)
            if step == BAD:
                weight.grad[0] = value
            optimizer.latest_loss = 2 + 0.01 * torch.randn(())
            optimizer.latest_grad_norm = weight.grad.norm()
            optimizer.step()
            if optimizer.step_skipped:
                skipped.append(step)
        finite = weight.isfinite().tolist()
        print(f"{name} in the gradient of step {BAD}, foreach {foreach}: skipped {skipped[0]} to {skipped[-1]}, {len(skipped)} steps; finite {finite}")
PY
"$folder/venv/bin/python" "$folder/skips.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
ai2-olmo-core 3.0.0
1e6 in the gradient of step 100, foreach False: skipped 100 to 100, 1 steps; finite [True, True, True, True]
1e6 in the gradient of step 100, foreach True: skipped 100 to 100, 1 steps; finite [True, True, True, True]
inf in the gradient of step 100, foreach False: skipped 100 to 228, 129 steps; finite [False, True, True, True]
inf in the gradient of step 100, foreach True: skipped 100 to 228, 129 steps; finite [False, True, True, True]
NaN in the gradient of step 100, foreach False: skipped 100 to 228, 129 steps; finite [False, True, True, True]
NaN in the gradient of step 100, foreach True: skipped 100 to 228, 129 steps; finite [False, True, True, True]
SEEN
