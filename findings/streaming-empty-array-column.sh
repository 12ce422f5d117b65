#!/usr/bin/env bash
# Guess: an MDS column of arrays of any length (`ndarray:int32`, the encoding with a dynamic shape) holds empty arrays, too.
# Fact: MDSWriter raises ValueError at the first sample whose array has no element. `bytes`, `str` and `json` columns may be empty.
# Why it matters: columns of positions are empty in ordinary samples: a block of a long document in which no other one begins, a page
#   without images, text without spans. A build of hours ends at the first of them. The bytes of the array can be stored instead.
# Seen with mosaicml-streaming 0.13.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 mosaicml-streaming==0.13.0 2>/dev/null
cat > "$folder/empty.py" <<'PY'
import importlib.machinery
import sys
import types
from importlib import metadata

import numpy as np

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

print(f"mosaicml-streaming {metadata.version('mosaicml-streaming')}")
out = f"{sys.argv[1]}/arrays"
with MDSWriter(out=out, columns={"starts": "ndarray:int32"}) as writer:
    writer.write({"starts": np.array([3, 70], np.int32)})
    writer.write({"starts": np.array([5], np.int32)})
    try:
        writer.write({"starts": np.array([], np.int32)})
    except ValueError as error:
        print(f"ndarray:int32, arrays of 2 and 1 elements: written; of 0 elements: ValueError: {error}")
    else:
        sys.exit("an empty array was written")
out = f"{sys.argv[1]}/bytes"
with MDSWriter(out=out, columns={"starts": "bytes"}) as writer:
    writer.write({"starts": np.array([], "<i4").tobytes()})
(sample,) = StreamingDataset(local=out, batch_size=1)
print("bytes, empty: written and read:", np.frombuffer(sample["starts"], "<i4"))
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/empty.py" "$folder" 2>/dev/null
