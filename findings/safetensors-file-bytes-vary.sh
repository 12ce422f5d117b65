#!/usr/bin/env bash
# Guess: a file format without timestamps gives equal bytes for equal weights and equal metadata, so that files can be compared, cached
#   and stored once by the hash of their contents.
# Fact: save_file writes the metadata in the order of a hash table with a random seed. With ten entries nearly every process, and nearly
#   every call in one process, writes another header. With one entry, or none, the bytes are equal. Tensors are not written in the
#   order of the dictionary either, but by size of type, then name; that order is always the same.
# Why it matters: a checkpoint or an export that is made twice looks changed to rsync, to a content-addressed store and to a
#   manifest of hashes. Two exports have to be compared tensor by tensor; metadata in one entry, as JSON, keeps the bytes equal.
# Seen with safetensors 0.8.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install safetensors==0.8.0 numpy==2.1.3 2>/dev/null
cat > "$folder/save.py" <<'PY'
import hashlib
import json
import sys
from importlib import metadata

import numpy as np
from safetensors.numpy import save, safe_open, save_file

print("safetensors", metadata.version("safetensors"))
weights = {"b": np.zeros(3, np.float32), "a": np.ones(4, np.float32), "half": np.ones(2, np.float16), "wide": np.ones(2)}
entries = {f"key{n}": str(n) for n in range(10)}


def different(notes: dict[str, str] | None) -> int:
    return len({hashlib.sha256(save(weights, metadata=notes)).digest() for _ in range(20)})


counts = {"ten entries": different(entries), "one entry": different({"all": json.dumps(entries)}), "no metadata": different(None)}
for name, count in counts.items():
    print(f"{name}: {count} different files of 20")
save_file(weights, f"{sys.argv[1]}/weights.safetensors")
with safe_open(f"{sys.argv[1]}/weights.safetensors", "np") as file:
    print("order in the file:", *file.offset_keys(), "| order given:", *weights)
    assert file.offset_keys() == ["wide", "a", "b", "half"]
assert counts["ten entries"] > 10 and counts["one entry"] == counts["no metadata"] == 1
PY
"$folder/venv/bin/python" "$folder/save.py" "$folder"
