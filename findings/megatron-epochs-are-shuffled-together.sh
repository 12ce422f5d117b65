#!/usr/bin/env bash
# Guess: megatron-core's GPTDataset of three epochs passes over all documents once, then again in another order: nothing is repeated before
#   the first epoch has ended.
# Fact: the copies of all epochs are shuffled together. The first third of the samples, as many as one epoch has, holds only 71 % of the
#   corpus, and repeats of it; of two epochs the first half holds 75 %. Only where less than 80 % of the last epoch is needed is it shuffled
#   on its own; the epochs before it are not.
# Why it matters: a comparison at one epoch, a curve of repeated data, or weights of a long run taken early are those of 71 % of the data,
#   and the share depends on the planned length of the run. Losses of repeated documents fall from the first hundreds of steps on.
# Seen with megatron-core 0.16.1 and torch 2.13.0 on a CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 megatron-core==0.16.1 numpy==2.1.3 2>/dev/null
cat > "$folder/epochs.py" <<'PY'
import sys
import warnings
from importlib import metadata

warnings.filterwarnings("ignore")
import numpy as np
import torch
import torch.distributed as dist
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

DOCUMENTS, LENGTH = 1000, 64
path = sys.argv[1] + "/corpus"
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
builder = IndexedDatasetBuilder(path + ".bin", dtype=np.int32)
for document in range(DOCUMENTS):
    builder.add_item(torch.arange(document * LENGTH, (document + 1) * LENGTH))
    builder.end_document()
builder.finalize(path + ".idx")


class Tokenizer:
    """What the dataset asks of a tokenizer. Every token of the corpus has its own number, so that they can be told apart."""

    eod, pad, vocab_size, unique_identifiers = DOCUMENTS * LENGTH, -1, DOCUMENTS * LENGTH + 1, {"name": "numbers"}


def shares(samples):
    """How much of the corpus is in each epoch's worth of tokens, in the order of training."""
    config = GPTDatasetConfig(
        random_seed=1, sequence_length=LENGTH, blend=([path], None), split="1,0,0", path_to_cache=sys.argv[1] + "/cache",
        tokenizer=Tokenizer(), reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False, create_attention_mask=False,
    )
    data = BlendedMegatronDatasetBuilder(GPTDataset, [samples, 0, 0], lambda: True, config).build()[0]
    tokens = np.concatenate([data[sample]["tokens"].numpy() for sample in range(samples)])
    epoch = DOCUMENTS * LENGTH
    whole = [part for part in np.split(tokens, range(epoch, len(tokens), epoch)) if len(part) == epoch]
    return " ".join(f"{len(np.unique(part)) / epoch:.2f}" for part in whole)


print("megatron-core", metadata.version("megatron-core"))
for samples, name in ((1980, "two epochs"), (2500, "two and a half"), (2980, "three epochs")):
    print(f"{name}: shares of the corpus in each epoch's worth of samples: {shares(samples)}")
PY
"$folder/venv/bin/python" "$folder/epochs.py" "$folder" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
megatron-core 0.16.1
two epochs: shares of the corpus in each epoch's worth of samples: 0.75
two and a half: shares of the corpus in each epoch's worth of samples: 0.75 0.75
three epochs: shares of the corpus in each epoch's worth of samples: 0.71 0.71
SEEN
