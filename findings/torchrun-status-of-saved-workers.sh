#!/usr/bin/env bash
# Guess: if every worker handles SIGTERM, saves and exits with 0, torchrun exits with 0 as well, or hands on a status that the
#   workers agree on.
# Fact: torchrun exits with 1 whenever it got SIGTERM itself. A status of the workers, such as 75 for "run me again", is
#   replaced by 1 too, with or without a signal.
# Why it matters: schedulers decide by the exit status whether a job is started again. Behind torchrun a run that saved looks like
#   one that failed. sleeptrain writes outcome.json into the run folder, and a batch script reads it.
# Seen with torch 2.13.0 on a CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 numpy==2.1.3 2>/dev/null
cat > "$folder/worker.py" <<'PY'
import os
import signal
import sys
from pathlib import Path

folder, how = Path(sys.argv[1]), sys.argv[2]
rank = os.environ["RANK"]


def save(number, frame):
    (folder / f"saved-{rank}").touch()
    sys.exit(0)


signal.signal(signal.SIGTERM, save)
(folder / f"ready-{rank}").touch()
if how == "status":
    sys.exit(75)
while True:
    signal.pause()
PY
start=("$folder/venv/bin/torchrun" --nproc-per-node 2 "$folder/worker.py" "$folder")
"${start[@]}" signal >/dev/null 2>&1 & torchrun=$!
until [ -e "$folder/ready-0" ] && [ -e "$folder/ready-1" ]; do sleep 0.1; done
kill -TERM "$torchrun"
status=0; wait "$torchrun" || status=$?
echo "after SIGTERM: $(ls "$folder" | grep -c saved) workers saved and exited with 0, torchrun exited with $status" | tee "$folder/seen"
status=0; "${start[@]}" status >/dev/null 2>&1 || status=$?
echo "workers exited with 75, torchrun with $status" | tee -a "$folder/seen"
diff "$folder/seen" - <<'SEEN'
after SIGTERM: 2 workers saved and exited with 0, torchrun exited with 1
workers exited with 75, torchrun with 1
SEEN
