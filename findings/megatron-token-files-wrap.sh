#!/usr/bin/env bash
# Guess: megatron-core's IndexedDatasetBuilder refuses a token number that its type cannot hold, as NumPy does for numbers of Python.
# Fact: tensors are cast. With uint16 the token 70,000 is written as 4,464 and -1 as 65,535, and nothing is said. The helper that chooses
#   the type is no guard: it is right for the size of the vocabulary that it is told.
# Why it matters: `vocab_size` of a transformers tokenizer leaves out added tokens. Where they do not fit, each of them, such as the end of
#   a document, is another word in the corpus, and the loss falls as usual.
# Seen with megatron-core 0.16.1 and torch 2.13.0 on a CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 megatron-core==0.16.1 numpy==2.1.3 2>/dev/null
cat > "$folder/wrapped.py" <<'PY'
import sys
import warnings
from importlib import metadata

warnings.filterwarnings("ignore")
import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

path = sys.argv[1] + "/corpus"
print("megatron-core", metadata.version("megatron-core"))
kind = DType.optimal_dtype(65_000)
builder = IndexedDatasetBuilder(path + ".bin", dtype=kind)
given = torch.tensor([64_999, 65_535, 65_536, 70_000, -1])
builder.add_item(given)
builder.end_document()
builder.finalize(path + ".idx")
corpus = IndexedDataset(path)
print("the type for a vocabulary of 65,000:", np.dtype(kind).name)
print("given:", *given.tolist())
print("read: ", *corpus[0].tolist())
try:
    np.array(given.tolist(), dtype=kind)
except OverflowError as error:
    print("NumPy, for a list of the same numbers: OverflowError:", error)
PY
"$folder/venv/bin/python" "$folder/wrapped.py" "$folder" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
megatron-core 0.16.1
the type for a vocabulary of 65,000: uint16
given: 64999 65535 65536 70000 -1
read:  64999 65535 0 4464 65535
NumPy, for a list of the same numbers: OverflowError: Python integer 65536 out of bounds for uint16
SEEN
