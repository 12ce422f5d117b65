#!/usr/bin/env bash
# Guess: sums and means of numpy arrays in bf16, which ml_dtypes adds and safetensors.numpy returns, are taken as those of float16 are: pairwise
#   over large arrays, a mean with sums in float32. The result is rounded, and near.
# Fact: they are running sums in bf16, which stop where the next element is less than half of the last place: a sum of ones at 256, and the mean of
#   a thousand ones is .256. std() and cumsum() go the same way. float16 is right. With dtype=numpy.float32 the sums are right.
# Why it matters: checks of a checkpoint without torch (mean, norm and share of zeros by tensor) give small, plausible numbers for every large
#   matrix, and two checkpoints that differ look alike.
# Seen with ml_dtypes 0.7.0, numpy 2.1.3, safetensors 0.8.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install ml_dtypes==0.7.0 numpy==2.1.3 safetensors==0.8.0 2>/dev/null
cat > "$folder/sums.py" <<'PY'
import sys
from importlib import metadata

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

print(*(f"{name} {metadata.version(name)}" for name in ("ml_dtypes", "numpy", "safetensors")))
file = f"{sys.argv[1]}/weights.safetensors"
save_file({"bf16": np.ones(1000, ml_dtypes.bfloat16), "float16": np.ones(1000, np.float16)}, file)
for name, array in load_file(file).items():
    print(f"{name} ({array.dtype}): sum {array.sum()}, mean {array.mean():.3f}, std {array.std():.3f}, last of cumsum {array.cumsum()[-1]}")
    print(f"  with dtype=float32: sum {array.sum(dtype=np.float32)}, mean {array.mean(dtype=np.float32)}")
PY
"$folder/venv/bin/python" "$folder/sums.py" "$folder" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
ml_dtypes 0.7.0 numpy 2.1.3 safetensors 0.8.0
bf16 (bfloat16): sum 256.0, mean 0.256, std 0.504, last of cumsum 256.0
  with dtype=float32: sum 1000.0, mean 1.0
float16 (float16): sum 1000.0, mean 1.000, std 0.000, last of cumsum 1000.0
  with dtype=float32: sum 1000.0, mean 1.0
SEEN
