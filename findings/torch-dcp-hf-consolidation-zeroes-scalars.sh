#!/usr/bin/env bash
# Guess: HuggingFaceStorageWriter with enable_consolidation writes the weights of a sharded model into whole safetensors files, each with its
#   value, or fails.
# Fact: a tensor without dimensions (a learned temperature, a scale of a layer) is zero in the consolidated file. Shards of the same checkpoint hold
#   its value, all other shapes are right, uneven shards too, and nothing is said. Integers raise TypeError in consolidation.
# Why it matters: the file is the one that is handed to inference engines. A model with a logit scale answers with equal probabilities, or with a
#   layer left out, and training that goes on from the shards does not show it.
# Seen with torch 2.13.0 (CPU build), safetensors 0.8.0, two processes over gloo.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 safetensors==0.8.0 fsspec==2026.9.0 huggingface-hub==0.36.2 numpy==2.1.3 2>/dev/null
cat > "$folder/consolidate.py" <<'PY'
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
values = {
    "even": (torch.arange(12.0).view(4, 3), Shard(0)), "uneven": (torch.arange(15.0).view(5, 3), Shard(0)),
    "one": (torch.tensor([2.5]), Replicate()), "scalar": (torch.tensor(2.5), Replicate()),
}
state = {name: distribute_tensor(value, mesh, [placement]) for name, (value, placement) in values.items()}
state["plain scalar"], values["plain scalar"] = torch.tensor(2.5), (torch.tensor(2.5), None)
folder = Path(sys.argv[1]) / "checkpoint"
files = dict.fromkeys(state, 1)
writer = HuggingFaceStorageWriter(path=str(folder), fqn_to_index_mapping=files, save_distributed=True, enable_consolidation=True)
dcp.save(state, storage_writer=writer)
dist.barrier()
again = {name: torch.zeros_like(value) for name, value in state.items()}
dcp.load(again, storage_reader=HuggingFaceStorageReader(path=str(folder / "sharded")))
if dist.get_rank() == 0:
    print("torch", torch.__version__.split("+")[0])
    whole = {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
for name, (value, _) in values.items():
    loaded = again[name].full_tensor() if hasattr(again[name], "full_tensor") else again[name]
    if dist.get_rank() == 0:
        shown = f" {whole[name].tolist()}, not {value.tolist()}" if value.numel() == 1 and not torch.equal(whole[name], value) else ""
        print(f"{name}: shards right {torch.equal(loaded, value)}, consolidated right {torch.equal(whole[name], value)}{shown}")
dist.barrier()
dist.destroy_process_group()
PY
"$folder/venv/bin/python" -m torch.distributed.run --nproc-per-node 2 --standalone "$folder/consolidate.py" "$folder" 2>"$folder/err" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
torch 2.13.0
even: shards right True, consolidated right True
uneven: shards right True, consolidated right True
one: shards right True, consolidated right True
scalar: shards right True, consolidated right False 0.0, not 2.5
plain scalar: shards right True, consolidated right False 0.0, not 2.5
SEEN
