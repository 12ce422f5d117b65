#!/usr/bin/env bash
# Guess: load_state_dict of an optimizer gives back the state that state_dict of the same optimizer for the same model gave, in the types it had.
# Fact: torch.optim.Optimizer casts every tensor of a parameter's state to the type of the parameter, whatever its own type was: float32 moments and
#   master weights of a bf16 parameter become bf16, a counter of int64 and a mask as well. Only a tensor under the name "step" keeps its
#   value. Python numbers stay. Nothing is said.
# Why it matters: an optimizer of one's own, with master weights or moments in float32 for a bf16 model, is right until the first restart. From then on
#   its master weights are bf16, and steps below half of a last place are lost: below, the weight stays where the restart found it. A counter
#   of 100,001 comes back as 99,840. Keep such tensors outside of `state`, or override load_state_dict and cast again.
# Seen with torch 2.13.0 (CPU build).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 numpy==2.1.3 2>/dev/null
cat > "$folder/restart.py" <<'PY'
import io

import torch


class Descent(torch.optim.Optimizer):
    """Steps of one length, on a float32 master copy of each weight."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    def step(self):
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state.update(master=weight.detach().float(), count=torch.tensor(100_000), step=torch.tensor(100_000.0))
                state["count"] += 1
                state["step"] += 1
                state["master"] -= group["lr"] * weight.grad.sign()
                weight.data.copy_(state["master"])


def run(kind, restarts):
    weight = torch.nn.Parameter(torch.ones(1, dtype=kind))
    optimizer = Descent([weight], lr=1e-4)
    for step in range(2000):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        if step == 0 and restarts:
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            saved = torch.load(file)
            optimizer = Descent([weight], lr=1e-4)
            optimizer.load_state_dict(saved)
            for name, value in saved["state"][0].items():
                loaded = optimizer.state[weight][name]
                print(f"    {name}: saved {value.item():.6g} {value.dtype}, loaded {loaded.item():.6g} {loaded.dtype}")
    return weight.item()


print("torch", torch.__version__.split("+")[0])
for kind in (torch.float32, torch.bfloat16):
    print(f"{kind}, a restart after the first of 2,000 steps of 0.0001, down from 1")
    print(f"    the weight after it: {run(kind, True):.2f}; without a restart {run(kind, False):.2f}")
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/restart.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
torch 2.13.0
torch.float32, a restart after the first of 2,000 steps of 0.0001, down from 1
    master: saved 0.9999 torch.float32, loaded 0.9999 torch.float32
    count: saved 100001 torch.int64, loaded 100001 torch.float32
    step: saved 100001 torch.float32, loaded 100001 torch.float32
    the weight after it: 0.80; without a restart 0.80
torch.bfloat16, a restart after the first of 2,000 steps of 0.0001, down from 1
    master: saved 0.9999 torch.float32, loaded 1 torch.bfloat16
    count: saved 100001 torch.int64, loaded 99840 torch.bfloat16
    step: saved 100001 torch.float32, loaded 100001 torch.float32
    the weight after it: 1.00; without a restart 0.80
SEEN
