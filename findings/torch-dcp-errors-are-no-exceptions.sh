#!/usr/bin/env bash
# Guess: `except Exception` around torch.distributed.checkpoint.load catches all that can be wrong with a checkpoint: a missing folder, a
#   tensor of another shape, a key that is not there.
# Fact: load and save raise CheckpointException for each of them, and that is no Exception: it derives from BaseException, as KeyboardInterrupt and
#   SystemExit do. It is so in one process, too. `.failures` holds the errors by rank, which are of the usual classes.
# Why it matters: "try the newest checkpoint, else the one before" ends the run at the first damaged one, and a handler that reports an error to the
#   other ranks, a server or a log is passed by. `finally` runs. Catch CheckpointException by name.
# Seen with torch 2.13.0 (CPU build).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 numpy==2.1.3 2>/dev/null
cat > "$folder/errors.py" <<'PY'
import sys

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

place = f"{sys.argv[1]}/checkpoint"
dcp.save({"weight": torch.ones(4)}, checkpoint_id=place)
CASES = {
    "no such folder": lambda: dcp.load({"weight": torch.zeros(4)}, checkpoint_id=f"{place}-2"),
    "another shape": lambda: dcp.load({"weight": torch.zeros(2)}, checkpoint_id=place),
    "no such key": lambda: dcp.load({"weight": torch.zeros(4), "bias": torch.zeros(4)}, checkpoint_id=place),
    "saved to the place of a file": lambda: dcp.save({"weight": torch.ones(4)}, checkpoint_id=__file__),
    "torch.load, no such file": lambda: torch.load(f"{place}-2"),
}
print("torch", torch.__version__.split("+")[0])
print("CheckpointException derives from", CheckpointException.__bases__[0].__name__)
for name, call in CASES.items():
    try:
        try:
            call()
        except Exception as error:
            print(f"{name}: caught by `except Exception`: {type(error).__name__}")
    except BaseException as error:
        causes = [type(cause[0]).__name__ for cause in error.failures.values()]
        print(f"{name}: not caught by `except Exception`: {type(error).__name__} of {', '.join(causes)}")
PY
"$folder/venv/bin/python" "$folder/errors.py" "$folder" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
torch 2.13.0
CheckpointException derives from BaseException
no such folder: not caught by `except Exception`: CheckpointException of AssertionError
another shape: not caught by `except Exception`: CheckpointException of ValueError
no such key: not caught by `except Exception`: CheckpointException of RuntimeError
saved to the place of a file: not caught by `except Exception`: CheckpointException of FileExistsError
torch.load, no such file: caught by `except Exception`: FileNotFoundError
SEEN
