#!/usr/bin/env bash
# Guess: weights that tensor parallelism does not divide are equal on all of its ranks, in training too: their gradients are summed where each
#   rank sees a part of the tokens' features, as Megatron does for the norms of queries and keys.
# Fact: with DeepSpeed's AutoTP each rank updates the norms of queries and keys (Qwen3) by the gradient of its own heads. They drift apart from
#   the first step on, and the model is another one than without tensor parallelism. All other undivided weights stay equal, and the losses
#   and the gradient norm of the first step are right. Nothing is said.
# Why it matters: most models since Qwen3 norm each head. A checkpoint holds the norms of one rank, with which the heads of the others were not
#   trained, and the loss curve of two ranks is near enough to that of one to pass for rounding.
# Seen with deepspeed 0.19.8, transformers 4.57.6, torch 2.13.0, two processes over gloo on a CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 deepspeed==0.19.8 transformers==4.57.6 numpy==2.1.3 2>/dev/null
cat > "$folder/norms.py" <<'PY'
import os

import torch

os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed
import deepspeed.ops
import transformers

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else a C++ operator is compiled first
deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(vocab_size=64, tie_word_embeddings=False, **sizes))
shapes = {name: weight.shape for name, weight in model.named_parameters()}
config = {
    "train_micro_batch_size_per_gpu": 4, "gradient_clipping": 0.0, "zero_optimization": {"stage": 1},
    "zero_allow_untested_optimizer": True, "tensor_parallel": {"autotp_size": world},
}
engine, *_ = deepspeed.initialize(
    model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.5), config=config, dist_init_required=False
)
if rank == 0:
    print(f"deepspeed {deepspeed.__version__}, transformers {transformers.__version__}, {world} ranks")
for step in range(50):
    tokens = torch.randint(0, 64, (4, 12), generator=torch.Generator().manual_seed(step % 4))
    loss = engine(input_ids=tokens, labels=tokens).loss
    engine.backward(loss)
    engine.step()
    if step == 0 and rank == 0:
        print(f"first step: loss {loss.item():.3f}, norm of the gradient {float(engine.get_global_grad_norm()):.3f}")
whole = {name: weight.detach() for name, weight in engine.module.named_parameters() if weight.shape == shapes[name]}
divided = len(shapes) - len(whole)
ranks: list[dict[str, torch.Tensor]] = [{}] * world
torch.distributed.all_gather_object(ranks, whole)
apart = [name for name in whole if not torch.equal(ranks[0][name], ranks[1][name])]
if rank == 0:
    kinds = sorted({name.split(".")[-2] for name in apart})
    furthest = max((ranks[0][name] - ranks[1][name]).abs().max().item() for name in apart)
    print(f"after 50 steps: {divided} weights divided, {len(whole)} not; of these differ {len(apart)}, {kinds}, by more than .02: {furthest > 0.02}")
torch.distributed.barrier()
os._exit(0)  # destructors of the engine print at the end of the interpreter
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -m torch.distributed.run --nproc-per-node 2 --standalone "$folder/norms.py" 2>"$folder/err" |
    { grep -E '^(deepspeed 0|first|after)' || cat "$folder/err"; } | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
deepspeed 0.19.8, transformers 4.57.6, 2 ranks
first step: loss 4.166, norm of the gradient 1.516
after 50 steps: 15 weights divided, 10 not; of these differ 4, ['k_norm', 'q_norm'], by more than .02: True
SEEN
