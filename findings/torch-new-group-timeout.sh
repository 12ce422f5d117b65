#!/usr/bin/env bash
# Guess: dist.new_group() without a timeout waits as long as the group that init_process_group made: whoever gives a timeout there
#   has set it for the run.
# Fact: it takes the backend's default, 30 minutes with gloo. megatron-core's initialize_model_parallel does so, too, by an
#   argument of its own in whole minutes.
# Why it matters: tensor, pipeline and data groups of a run are all made so. A hung rank is then noticed after half an hour of
#   every GPU, though the run was told two minutes. sleeptrain passes `mesh.timeout` to every group that it makes.
# Seen with torch 2.13.0 and megatron-core 0.16.1 on a CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 megatron-core==0.16.1 numpy==2.1.3 2>/dev/null
cat > "$folder/groups.py" <<'PY'
import warnings
from datetime import timedelta

warnings.filterwarnings("ignore")
import torch
import torch.distributed as dist
from megatron.core import parallel_state


def seconds(group):
    return int(group._get_backend(torch.device("cpu")).options._timeout.total_seconds())


dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=120))
parallel_state.initialize_model_parallel(create_gloo_process_groups=False)
print("default", seconds(dist.group.WORLD))
print("new_group", seconds(dist.new_group()))
print("new_group with a timeout", seconds(dist.new_group(timeout=timedelta(seconds=120))))
print("megatron-core, tensor", seconds(parallel_state.get_tensor_model_parallel_group()))
PY
"$folder/venv/bin/python" "$folder/groups.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
default 120
new_group 1800
new_group with a timeout 120
megatron-core, tensor 1800
SEEN
