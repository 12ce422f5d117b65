#!/usr/bin/env bash
# Guess: an epoch of a StreamingDataset that one process reads has every sample once, len(dataset) of them. num_canonical_nodes is for the
#   order, so that it does not depend on the number of nodes.
# Fact: each canonical node gets as many samples as every other one. With 64 of them an epoch of 100 samples has 128, of which 28 come twice,
#   and len(dataset) is 100. 64 is what the shuffle algorithms py1s and py2s take by default.
# Why it matters: a data set for evaluation is small. Its mean loss is that of other samples for each number of canonical nodes, and a count
#   that goes by len() ends before the data does. Give data for evaluation num_canonical_nodes=1, or weigh each sample once by its number.
# Seen with mosaicml-streaming 0.13.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 mosaicml-streaming==0.13.0 2>/dev/null
cat > "$folder/epoch.py" <<'PY'
import importlib.machinery
import sys
import types
from collections import Counter
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
for samples in (100, 1000):
    for number, options in enumerate((
        {}, {"num_canonical_nodes": 8}, {"num_canonical_nodes": 64}, {"shuffle": True, "shuffle_algo": "py2s"},
    )):
        local = f"{sys.argv[1]}/{samples}-{number}"
        with MDSWriter(out=local, columns={"number": "int"}) as writer:
            for sample in range(samples):
                writer.write({"number": sample})
        dataset = StreamingDataset(local=local, batch_size=1, **options)
        times = Counter(sample["number"] for sample in dataset)
        print(f"{samples} samples, {options}: {dataset.num_canonical_nodes} canonical nodes, len {len(dataset)},", end=" ")
        print(f"read {sum(times.values())}, twice {sum(count == 2 for count in times.values())}, never {samples - len(times)}")
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/epoch.py" "$folder" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
mosaicml-streaming 0.13.0
100 samples, {}: 1 canonical nodes, len 100, read 100, twice 0, never 0
100 samples, {'num_canonical_nodes': 8}: 8 canonical nodes, len 100, read 104, twice 4, never 0
100 samples, {'num_canonical_nodes': 64}: 64 canonical nodes, len 100, read 128, twice 28, never 0
100 samples, {'shuffle': True, 'shuffle_algo': 'py2s'}: 64 canonical nodes, len 100, read 128, twice 28, never 0
1000 samples, {}: 1 canonical nodes, len 1000, read 1000, twice 0, never 0
1000 samples, {'num_canonical_nodes': 8}: 8 canonical nodes, len 1000, read 1000, twice 0, never 0
1000 samples, {'num_canonical_nodes': 64}: 64 canonical nodes, len 1000, read 1024, twice 24, never 0
1000 samples, {'shuffle': True, 'shuffle_algo': 'py2s'}: 64 canonical nodes, len 1000, read 1024, twice 24, never 0
SEEN
