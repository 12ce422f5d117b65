#!/usr/bin/env bash
# Guess: is_completed() of a send turns true once the receiver has the message ("in the case of CPU collectives, returns True if
#   completed", say torch's documents), so that a sender can release the tensors of those that are done.
# Fact: over gloo is_completed() of a send stays false, long after the message has arrived, until wait() was called.
# Why it matters: a pipeline that sends without waiting and releases buffers as sends complete holds those of a whole step on CPUs, and
#   releases them at once over NCCL. Of four stages the inner ones held up to 16 % more than planned until sends were left out.
# Seen with torch 2.13.0 (CPU build).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 numpy==2.1.3 2>/dev/null
cat > "$folder/send.py" <<'PY'
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

COUNT = 5


def work(rank: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    messages = [torch.full((1000,), float(i)) for i in range(COUNT)]
    if rank == 0:
        sends = [dist.isend(message, 1) for message in messages]
        reply = torch.zeros(1)
        dist.recv(reply, 1)  # the receiver has seen all messages
        before = sum(send.is_completed() for send in sends)
        for send in sends:
            send.wait()
        after = sum(send.is_completed() for send in sends)
        print(f"sends completed after all {COUNT} messages have arrived: {before}, after wait(): {after}", flush=True)
    else:
        for message in messages:
            buffer = torch.full((1000,), -1.0)
            dist.recv(buffer, 0)
            assert torch.equal(buffer, message)
        dist.send(torch.ones(1), 0)
    dist.barrier()


if __name__ == "__main__":
    print("torch", torch.__version__, flush=True)
    multiprocessing.spawn(work, (sys.argv[1],), 2)
PY
"$folder/venv/bin/python" "$folder/send.py" "$folder/store" 2>/dev/null | tee "$folder/output"
grep -q "^sends completed after all 5 messages have arrived: 0, after wait(): 5" "$folder/output"
