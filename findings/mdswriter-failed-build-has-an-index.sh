#!/usr/bin/env bash
# Guess: MDSWriter as a context manager that is left by an exception leaves no index.json, or one that readers refuse: the build failed.
# Fact: it writes the samples that it has and a complete index.json. StreamingDataset reads the folder without a word; nothing in it
#   says that samples are missing.
# Why it matters: a corpus whose build died of a full tokenizer, a bad line or Ctrl-C at 3 % is trained on for weeks as if it were the
#   whole. Build beside the place and rename when all is written, or keep the number of samples that were meant.
# Seen with mosaicml-streaming 0.13.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 mosaicml-streaming==0.13.0 2>/dev/null
cat > "$folder/build.py" <<'PY'
import importlib.machinery
import os
import sys
import types
from importlib import metadata

# The library imports torchvision for image formats, which this data does not have; its build for a GPU does not load beside torch's for CPUs.
for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.datasets"):
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__, module.__spec__ = [], importlib.machinery.ModuleSpec(name, None)
    module.VisionDataset = type("VisionDataset", (), {})
    module.to_tensor = None
sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]
sys.modules["torchvision.transforms"].functional = sys.modules["torchvision.transforms.functional"]
sys.modules["torchvision"].datasets = sys.modules["torchvision.datasets"]

from streaming import MDSWriter, StreamingDataset

print("mosaicml-streaming", metadata.version("mosaicml-streaming"))
out = f"{sys.argv[1]}/corpus"
lines = ["one", "two", None, "four"]
try:
    with MDSWriter(out=out, columns={"text": "str"}) as writer:
        for line in lines:
            writer.write({"text": line.upper()})
except AttributeError as error:
    print(f"the build of {len(lines)} samples failed: {error}")
print("files:", *sorted(os.listdir(out)))
samples = [sample["text"] for sample in StreamingDataset(local=out, batch_size=1)]
print("StreamingDataset reads", samples)
assert samples == ["ONE", "TWO"]
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/build.py" "$folder" 2>/dev/null
