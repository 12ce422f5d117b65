#!/usr/bin/env bash
# Guess: BatchGenerator of mlx-lm, which batch_generate and the server use, gives a prompt the log-probabilities that it has alone, whatever
#   else is in its batch, or does not put the model's prompts together.
# Fact: so it is for Mamba2, Falcon-H1, Qwen3-Next, Granite and others. Prompts are filled up to the longest of their batch, and not every
#   model leaves that out of its recurrent states: with Mamba, Jamba, Nemotron-H, Ling's linear attention and OLMo-hybrid, every prompt
#   but the longest is answered by other numbers than alone, with no warning. The longest, and one that is generated alone, are right.
# Why it matters: an exported hybrid is tried out and evaluated in batches, and its scores then depend on the lengths of the other prompts.
#   Which architecture is affected does not follow from its kind: Mamba is and Mamba2 is not, OLMo's Gated DeltaNet is and Qwen's is not.
# Seen with mlx-lm 0.32.2, mlx 0.32.4 on a CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install mlx==0.32.4 mlx-cpu==0.32.4 mlx-lm==0.32.2 transformers==5.23.0 2>/dev/null
cat > "$folder/batches.py" <<'PY'
import importlib
from importlib import metadata

import mlx.core as mx
import numpy as np
from mlx_lm.generate import BatchGenerator

mx.set_default_device(mx.cpu)
print(f"mlx-lm {metadata.version('mlx-lm')}, mlx {metadata.version('mlx')}")
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 512, "rope_theta": 1e4}
DELTA = {"linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_conv_kernel_dim": 4}
SSM = {"conv_kernel": 4, "use_bias": False, "use_conv_bias": True, "n_groups": 2, "layer_norm_epsilon": 1e-5, "time_step_limit": [0.001, 100.0]}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32}
MODELS = {
    "mamba": {"state_size": 8, "conv_kernel": 4, "use_bias": False, "use_conv_bias": True, "time_step_rank": 4},
    "mamba2": {**SSM, "num_heads": 8, "head_dim": 8, "state_size": 8, "tie_word_embeddings": True, "time_step_rank": "auto"},
    "jamba": {**HEADS, **EXPERTS, "attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1, "expert_layer_period": 2,
              "mamba_d_conv": 4, "mamba_d_state": 8, "mamba_expand": 2},
    "falcon_h1": {**HEADS, "head_dim": 16, "hidden_size": 64, "mamba_d_head": 16, "mamba_d_ssm": 128, "mamba_d_state": 8, "mamba_n_heads": 8,
                  "mlp_multipliers": [1.0, 1.0], "ssm_multipliers": [1.0] * 5},
    "nemotron_h": {**HEADS, **SSM, "attention_bias": False, "mamba_num_heads": 8, "mamba_head_dim": 8, "mamba_proj_bias": False,
                   "ssm_state_size": 8, "mlp_bias": False, "hybrid_override_pattern": ["M", "*"], "head_dim": 8},
    "qwen3_next": {**HEADS, **DELTA, **EXPERTS, "linear_num_key_heads": 2, "decoder_sparse_step": 1, "shared_expert_intermediate_size": 32,
                   "mlp_only_layers": [], "partial_rotary_factor": 0.5, "head_dim": 16, "full_attention_interval": 2},
    "olmo_hybrid": {**HEADS, **DELTA, "linear_num_key_heads": 4, "linear_allow_neg_eigval": True, "tie_word_embeddings": False,
                    "attention_bias": False, "layer_types": ["linear_attention", "full_attention"]},
    "bailing_moe_linear": {**HEADS, **EXPERTS, "num_shared_experts": 1, "norm_topk_prob": True, "first_k_dense_replace": 1,
                           "layer_group_size": 2, "group_norm_size": 2, "topk_group": 1},
}
DRAW = np.random.RandomState(0)
PROMPTS = [DRAW.randint(3, 64, length).tolist() for length in (24, 9, 15)]
NEW, TEXT = 6, DRAW.randint(3, 64, (len(PROMPTS), 64)).tolist()


def said(of):
    """A sampler that chooses the tokens of a given text, so that alone and in a batch the same text is continued."""
    tokens = iter(TEXT[of])
    return lambda logprobs: mx.array([next(tokens)])


def logprobs(model, chosen):
    """Log-probabilities of the new tokens [prompt][NEW, vocabulary] of prompts that are generated together."""
    generator, found = BatchGenerator(model, max_tokens=NEW, stop_tokens=[[99]]), {}
    prompt = dict(zip(generator.insert([PROMPTS[i] for i in chosen], samplers=[said(i) for i in chosen]), chosen))
    while any(len(found.get(i, [])) < NEW for i in chosen):
        for response in generator.next()[1]:
            found.setdefault(prompt[response.uid], []).append(np.array(response.logprobs.astype(mx.float32)).ravel())
    return {i: np.stack(rows[:NEW]) for i, rows in found.items()}


for name, options in MODELS.items():
    mx.random.seed(0)
    module = importlib.import_module(f"mlx_lm.models.{name}")
    model = module.Model(module.ModelArgs.from_dict({"model_type": name, **SIZES, **options}))
    together = logprobs(model, [0, 1, 2])
    same = [bool(np.abs(together[i] - logprobs(model, [i])[i]).max() < 1e-3) for i in range(len(PROMPTS))]
    print(f"{name}: prompts of {', '.join(str(len(p)) for p in PROMPTS)} tokens together as alone: {same}")
PY
"$folder/venv/bin/python" "$folder/batches.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
mlx-lm 0.32.2, mlx 0.32.4
mamba: prompts of 24, 9, 15 tokens together as alone: [True, False, False]
mamba2: prompts of 24, 9, 15 tokens together as alone: [True, True, True]
jamba: prompts of 24, 9, 15 tokens together as alone: [True, False, False]
falcon_h1: prompts of 24, 9, 15 tokens together as alone: [True, True, True]
nemotron_h: prompts of 24, 9, 15 tokens together as alone: [True, False, False]
qwen3_next: prompts of 24, 9, 15 tokens together as alone: [True, True, True]
olmo_hybrid: prompts of 24, 9, 15 tokens together as alone: [True, False, False]
bailing_moe_linear: prompts of 24, 9, 15 tokens together as alone: [True, False, False]
SEEN
