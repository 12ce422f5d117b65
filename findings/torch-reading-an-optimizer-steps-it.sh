#!/usr/bin/env bash
# Guess: get_optimizer_state_dict of torch.distributed.checkpoint reads the optimizer. A run that saves before its first step takes the
#   same steps as one that does not.
# Fact: for an optimizer without state it calls optimizer.step() with gradients and learning rate of zero, to have the state made. The
#   weights stay, and the state that this step leaves is kept: AdamW's `step` is 1, so that the first real step is its second, with the bias
#   correction of the second: 0.74 times as long as it would be. Hooks of step() run as well.
# Why it matters: runs that save step 0, or look at the state for a memory report, differ from the first step on from runs that do not.
#   Save from step 1 on, or save no optimizer that has no state.
# Seen with torch 2.13.0 (CPU build).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 numpy==2.1.3 2>/dev/null
cat > "$folder/state.py" <<'PY'
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict


def steps(save_first):
    """The lengths of the first three steps under a gradient of ones, and the calls of step() by its hook."""
    torch.manual_seed(0)
    model, calls, lengths = torch.nn.Linear(2, 2, bias=False), [], []
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    if save_first:
        state = get_optimizer_state_dict(model, optimizer)
        print("saved before the first step: step", state["state"]["weight"]["step"].item())
    for _ in range(3):
        before = model.weight.detach().clone()
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
        lengths.append(f"{(before - model.weight).mean():.4f}")
    return *lengths, f"{len(calls)} calls of step()"


print("torch", torch.__version__.split("+")[0])
print("three steps, not saved:", *steps(False))
print("three steps, saved:    ", *steps(True))
PY
"$folder/venv/bin/python" "$folder/state.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
torch 2.13.0
three steps, not saved: 0.1000 0.1000 0.1000 3 calls of step()
saved before the first step: step 1.0
three steps, saved:     0.0744 0.0858 0.0910 4 calls of step()
SEEN
