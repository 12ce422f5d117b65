#!/usr/bin/env bash
# Guess: Dataset.from_generator runs its generator: a dataset that is made again from files that have changed has what they hold now.
# Fact: it is a cache whose key is the generator's code and its arguments. The same code with the same path returns the first dataset, in
#   other processes too, and the generator is not called. load_dataset of the same file looks at the file and sees the change.
# Why it matters: a corpus that is cleaned again, or whose download was completed, is tokenized as it was before, with the old number of
#   examples and no message. Give the generator an argument that changes with the files (a hash, a time), or a cache folder a build.
# Seen with datasets 5.2.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install datasets==5.2.0 numpy==2.1.3 2>/dev/null
cat > "$folder/corpus.py" <<'PY'
import os
import sys

import datasets

path, cache = sys.argv[1:]


def documents(path):
    print("  the generator runs", flush=True)
    with open(path) as file:
        for line in file:
            yield {"text": line.strip()}


made = datasets.Dataset.from_generator(documents, gen_kwargs={"path": path}, cache_dir=cache)
read = datasets.load_dataset("text", data_files=path, split="train", cache_dir=cache)
keyed = {"path": path, "changed": os.stat(path).st_mtime_ns}
told = datasets.Dataset.from_generator(lambda path, changed: documents(path), gen_kwargs=keyed, cache_dir=cache)
print(f"  from_generator: {made['text'][:]}; load_dataset: {read['text'][:]}; from_generator with the file's time: {told['text'][:]}")
PY
export HF_HOME=$folder/home HF_HUB_OFFLINE=1
made() { "$folder/venv/bin/python" "$folder/corpus.py" "$folder/corpus.txt" "$folder/cache" 2>/dev/null; }
{
    echo "datasets $("$folder/venv/bin/python" -c 'import datasets; print(datasets.__version__)')"
    echo "a file of one line:"
    echo half > "$folder/corpus.txt"
    made
    echo "a second line is added:"
    echo whole >> "$folder/corpus.txt"
    made
} | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
datasets 5.2.0
a file of one line:
  the generator runs
  the generator runs
  from_generator: ['half']; load_dataset: ['half']; from_generator with the file's time: ['half']
a second line is added:
  the generator runs
  from_generator: ['half']; load_dataset: ['half', 'whole']; from_generator with the file's time: ['half', 'whole']
SEEN
