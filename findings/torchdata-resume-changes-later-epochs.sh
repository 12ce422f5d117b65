#!/usr/bin/env bash
# Guess: a StatefulDataLoader of torchdata with a seeded generator that is resumed from its state_dict gives what the run without a stop gives: the
#   rest of the epoch, and the same epochs after it. Where it does so with workers, it does without.
# Fact: the rest of the epoch is right. Without workers every epoch after it has another order than without the stop; with one worker or more it is
#   the same. A RandomSampler with the generator, handed in as sampler=, is resumed for good in both. A state that is taken after the last batch,
#   before the loop has ended, makes the next epoch an empty one.
# Why it matters: a check of resuming compares the next batches, which agree. In a run of many epochs each restart changes the order of the data from
#   the next epoch on, so that a run with a restart cannot be reproduced without it. Loops that count batches stop and save just there
#   where the state is that of an empty epoch.
# Seen with torchdata 0.11.0 and torch 2.13.0 (CPU build).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 torchdata==0.11.0 numpy==2.1.3 2>/dev/null
cat > "$folder/resume.py" <<'PY'
from importlib import metadata
from itertools import islice

import torch
from torch.utils.data import RandomSampler
from torchdata.stateful_dataloader import StatefulDataLoader

ITEMS = list(range(6))


def loader(workers, own_sampler):
    generator = torch.Generator().manual_seed(0)
    order = {"sampler": RandomSampler(ITEMS, generator=generator)} if own_sampler else {"shuffle": True, "generator": generator}
    return StatefulDataLoader(ITEMS, batch_size=None, num_workers=workers, **order)


def epochs(made):
    return [[int(item) for item in made] for _ in range(3)]


def shown(items):
    return "".join(map(str, items))


print("torchdata", metadata.version("torchdata"), "torch", torch.__version__.split("+")[0])
for own_sampler in (False, True):
    for workers in (0, 1, 2):
        print(f"{'sampler=' if own_sampler else 'generator='}, {workers} workers")
        print("    no stop: ", *map(shown, epochs(loader(workers, own_sampler))))
        for stop in (2, 6):
            before = loader(workers, own_sampler)
            read = [int(item) for item in islice(before, stop)]
            after = loader(workers, own_sampler)
            after.load_state_dict(before.state_dict())
            first, *later = epochs(after)
            print(f"    stop at {stop}: {shown(read)}|{shown(first)}", *map(shown, later))
PY
"$folder/venv/bin/python" "$folder/resume.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
torchdata 0.11.0 torch 2.13.0
generator=, 0 workers
    no stop:  253014 135240 421305
    stop at 2: 25|3014 305421 054123
    stop at 6: 253014| 305421 054123
generator=, 1 workers
    no stop:  135240 325140 042153
    stop at 2: 13|5240 325140 042153
    stop at 6: 135240| 325140 042153
generator=, 2 workers
    no stop:  135240 325140 042153
    stop at 2: 13|5240 325140 042153
    stop at 6: 135240| 325140 042153
sampler=, 0 workers
    no stop:  253014 521340 251043
    stop at 2: 25|3014 521340 251043
    stop at 6: 253014| 521340 251043
sampler=, 1 workers
    no stop:  253014 521340 251043
    stop at 2: 25|3014 521340 251043
    stop at 6: 253014| 521340 251043
sampler=, 2 workers
    no stop:  253014 521340 251043
    stop at 2: 25|3014 521340 251043
    stop at 6: 253014| 521340 251043
SEEN
