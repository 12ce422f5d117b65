#!/usr/bin/env bash
# Guess: of a streamed dataset of Hugging Face, take(n) is for evaluation and skip(n) for training: no example is in both, whoever reads.
# Fact: take and skip are divided among those who read. Each of two ranks (split_dataset_by_node), or each of two workers of a
#   DataLoader, skips n / 2 examples of its own files. Evaluation that one process reads takes the first n of the first file, and training
#   on two ranks reads half of them. As many others are read by nobody. With one reader the two parts are disjoint.
# Why it matters: a check on a laptop finds no overlap, and on the cluster a share of the held-out examples is trained on, another one for
#   each number of ranks and workers. Hold out whole files, or write the two parts before training.
# Seen with datasets 5.2.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install datasets==5.2.0 numpy==2.1.3 2>/dev/null
cat > "$folder/parts.py" <<'PY'
import json
import sys

import datasets
from datasets.distributed import split_dataset_by_node

folder = sys.argv[1]
files = [f"{folder}/{file}.jsonl" for file in range(2)]
for file, path in enumerate(files):
    with open(path, "w") as out:
        out.writelines(json.dumps({"number": 10 * file + row}) + "\n" for row in range(10))
data = datasets.load_dataset("json", data_files=files, split="train", streaming=True, cache_dir=f"{folder}/cache")
held_out, training = data.take(6), data.skip(6)


def numbers(part, ranks):
    parts = [split_dataset_by_node(part, rank, ranks) for rank in range(ranks)] if ranks > 1 else [part]
    return {row["number"] for one in parts for row in one}


print("datasets", datasets.__version__)
evaluated = numbers(held_out, 1)
print("20 examples in 2 files; held out, read by one process:", *sorted(evaluated))
for ranks in (1, 2):
    trained = numbers(training, ranks)
    print(f"training on {ranks} rank(s): {len(trained)} examples; also held out: {sorted(trained & evaluated)}; in neither:",
          sorted(set(range(20)) - trained - evaluated))
PY
HF_HOME=$folder/home HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/parts.py" "$folder" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
datasets 5.2.0
20 examples in 2 files; held out, read by one process: 0 1 2 3 4 5
training on 1 rank(s): 14 examples; also held out: []; in neither: []
training on 2 rank(s): 14 examples; also held out: [3, 4, 5]; in neither: [10, 11, 12]
SEEN
