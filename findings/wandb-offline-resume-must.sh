#!/usr/bin/env bash
# Guess: wandb.init(id=..., resume="must") continues the run of that id, or raises an error where it cannot know it. Offline it
#   continues what lies in the same folder.
# Fact: offline it does neither. The first start with "must" makes a run that never existed; every further one makes another folder of
#   the same id, says resumed False, and begins at step 0. Its summary knows nothing of the earlier part.
# Why it matters: nodes without a network log offline, and a preempted training starts many times. Code that asks run.resumed or
#   run.step where to go on starts over; a mistyped id is found only when the folders are uploaded. Take the step from the checkpoint,
#   and give it to every log call.
# Seen with wandb 0.31.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install wandb==0.31.0 2>/dev/null
cat > "$folder/runs.py" <<'PY'
import os
import sys
from importlib import metadata

import wandb

print("wandb", metadata.version("wandb"))
folders = []
for start in range(3):
    run = wandb.init(project="p", id="preempted", resume="must", mode="offline", dir=sys.argv[1], settings=wandb.Settings(silent=True))
    print(f"start {start}: resumed {run.resumed}, first step {run.step}, best {dict(run.summary).get('best')}")
    assert not run.resumed and run.step == 0 and "best" not in dict(run.summary)
    run.summary["best"] = 1.0 + start
    for step in range(10 * start, 10 * start + 3):
        run.log({"loss": 1.0}, step=step)
    folders.append(os.path.dirname(run.dir))
    run.finish()
print(f"{len(set(folders))} folders for {len(folders)} starts of one id")
assert len(set(folders)) == 3
PY
HOME=$folder "$folder/venv/bin/python" "$folder/runs.py" "$folder" 2>/dev/null
