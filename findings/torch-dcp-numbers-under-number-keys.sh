#!/usr/bin/env bash
# Guess: torch.distributed.checkpoint restores a state dict as torch.save does, or raises an error about what it cannot restore. A dictionary with
#   whole numbers as keys, such as an optimizer's state or a count for each data source, is nothing special.
# Fact: tensors under such keys are restored. Numbers, strings and lists under them are not: the dictionary that is loaded into keeps its old value
#   under 0, and gets the saved one under the string "0". Nothing is raised. Strings as keys are restored in full.
# Why it matters: {source: documents_read} starts again at 0, and the data with it. An optimizer that keeps `step` as a number, as many outside of
#   torch do, has its moments back and its step at 0: its bias correction divides moments of a long run as if they were those of a first step.
#   Save counts as tensors, or under strings.
# Seen with torch 2.13.0 (CPU build).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 numpy==2.1.3 2>/dev/null
cat > "$folder/keys.py" <<'PY'
import sys

import torch
import torch.distributed.checkpoint as dcp

CASES = {
    "counts by source": lambda count: {"read": {0: count * 500, 1: count * 700}},
    "the same, strings": lambda count: {"read": {"0": count * 500, "1": count * 700}},
    "the same, tensors": lambda count: {"read": {0: torch.tensor(count * 500), 1: torch.tensor(count * 700)}},
    "lists": lambda count: {"files": {0: [f"shard-{count}"]}},
    "state of an optimizer": lambda count: {"state": {0: {"step": count * 900, "moment": torch.full((2,), float(count))}}},
}
print("torch", torch.__version__.split("+")[0])
for number, (name, make) in enumerate(CASES.items()):
    place = f"{sys.argv[1]}/{number}"
    dcp.save(make(1), checkpoint_id=place)
    torch.save(make(1), f"{place}.pt")
    loaded = make(0)
    dcp.load(loaded, checkpoint_id=place)
    print(f"{name}\n    torch.save: {torch.load(f'{place}.pt')}\n    dcp:        {loaded}")
PY
"$folder/venv/bin/python" "$folder/keys.py" "$folder" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
torch 2.13.0
counts by source
    torch.save: {'read': {0: 500, 1: 700}}
    dcp:        {'read': {0: 0, 1: 0, '0': 500, '1': 700}}
the same, strings
    torch.save: {'read': {'0': 500, '1': 700}}
    dcp:        {'read': {'0': 500, '1': 700}}
the same, tensors
    torch.save: {'read': {0: tensor(500), 1: tensor(700)}}
    dcp:        {'read': {0: tensor(500), 1: tensor(700)}}
lists
    torch.save: {'files': {0: ['shard-1']}}
    dcp:        {'files': {0: ['shard-0'], '0': ['shard-1']}}
state of an optimizer
    torch.save: {'state': {0: {'step': 900, 'moment': tensor([1., 1.])}}}
    dcp:        {'state': {0: {'step': 0, 'moment': tensor([1., 1.])}, '0': {'step': 900}}}
SEEN
