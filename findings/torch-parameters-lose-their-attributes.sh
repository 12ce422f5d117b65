#!/usr/bin/env bash
# Guess: an attribute of a parameter, such as no_weight_decay = True, stays with it as long as the model lives, and so does a tie of two
#   modules to one parameter: what copies or moves a model copies or moves both.
# Fact: to(), pickle and DDP keep both. deepcopy and fully_shard keep the tie and drop attributes. to_empty() of a model on the meta
#   device and load_state_dict(assign=True) drop attributes and untie: afterwards embedding and head are two parameters. Nothing is said.
# Why it matters: these are the steps by which a large model is made: on meta, sharded, to_empty, filled; or loaded with assign=True. An
#   optimizer that reads the attribute decays what it should not, such as the decay rates of a state-space block, and a tied model trains
#   one more matrix. Name exempt parameters by a list of names, and tie after to_empty or loading.
# Seen with torch 2.13.0 (CPU build).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 numpy==2.1.3 2>/dev/null
cat > "$folder/attributes.py" <<'PY'
import copy
import pickle

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(8, 4), nn.Linear(4, 8, bias=False)
        self.head.weight = self.embed.weight
        self.embed.weight.no_weight_decay = True


def tied(device: str = "cpu") -> Tied:
    with torch.device(device):
        return Tied()


def loaded(assign: bool) -> Tied:
    (model := tied()).load_state_dict(tied().state_dict(), assign=assign)
    return model


print("torch", torch.__version__.split("+")[0])
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
for name, model in {
    "new": tied(),
    "to(bfloat16)": tied().to(torch.bfloat16),
    "pickle": pickle.loads(pickle.dumps(tied())),
    "deepcopy": copy.deepcopy(tied()),
    "DDP": DistributedDataParallel(tied()).module,
    "load_state_dict": loaded(assign=False),
    "load_state_dict(assign=True)": loaded(assign=True),
    "fully_shard": fully_shard(tied(), mesh=mesh),
    "fully_shard on meta, then to_empty": fully_shard(tied("meta"), mesh=mesh).to_empty(device="cpu"),
    "to_empty from meta": tied("meta").to_empty(device="cpu"),
}.items():
    kept = hasattr(model.embed.weight, "no_weight_decay")
    print(f"{name + ':':36} attribute {'kept' if kept else 'lost'}, {'tied' if model.head.weight is model.embed.weight else 'not tied'},", end=" ")
    print(f"{len(list(model.parameters()))} parameters")
dist.destroy_process_group()
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/attributes.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
torch 2.13.0
new:                                 attribute kept, tied, 1 parameters
to(bfloat16):                        attribute kept, tied, 1 parameters
pickle:                              attribute kept, tied, 1 parameters
deepcopy:                            attribute lost, tied, 1 parameters
DDP:                                 attribute kept, tied, 1 parameters
load_state_dict:                     attribute kept, tied, 1 parameters
load_state_dict(assign=True):        attribute lost, not tied, 2 parameters
fully_shard:                         attribute lost, tied, 1 parameters
fully_shard on meta, then to_empty:  attribute lost, tied, 1 parameters
to_empty from meta:                  attribute lost, not tied, 2 parameters
SEEN
