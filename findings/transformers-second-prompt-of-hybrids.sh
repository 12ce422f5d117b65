#!/usr/bin/env bash
# Guess: a recurrent or hybrid model of transformers takes a second stretch of text with the cache of the first, of one token or of many:
#   its logits are those of the whole text, or it refuses.
# Fact: it depends on the model. Of many tokens at once, the layers of Mamba, FalconMamba and Jamba take the last inputs of the convolution
#   over from the first stretch, but begin with an empty recurrent state; MiniMax gives logits that are not those of the whole, either.
#   None of them says so. One token at a time all are right, and so are Mamba2, FalconH1, OlmoHybrid and Qwen3.5 with many. Bamba is right
#   if it is given position_ids; without, it counts positions from 0 again, since its first layer has no attention cache.
# Why it matters: scoring a continuation behind a context that is cached once, a further turn of a conversation and speculative decoding
#   all call the model so. Baselines without attention are compared on just such tasks of memory, and seem to remember nothing.
# Seen with transformers 5.23.0, torch 2.13.0 on a CPU, without kernels for state-space models.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 transformers==5.23.0 numpy==2.1.3 2>/dev/null
cat > "$folder/second.py" <<'PY'
import inspect

import torch
import transformers

print("transformers", transformers.__version__)
SIZES = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MLP, HEADS = {"intermediate_size": 64}, {"num_attention_heads": 4, "num_key_value_heads": 2}
SSD = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 2, "mamba_chunk_size": 8}
DELTA = {"linear_num_key_heads": 4, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
HYBRID = {**MLP, **HEADS, "layer_types": ["linear_attention", "full_attention"]}
MODELS = {
    "Mamba": {"state_size": 8},
    "FalconMamba": {"state_size": 8},
    "Mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 8},
    "Jamba": {**MLP, **HEADS, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "num_experts_per_tok": 1, "mamba_d_state": 8,
              "mamba_dt_rank": 4, "use_mamba_kernels": False},
    "Bamba": {**MLP, **HEADS, **SSD, "attn_layer_indices": [1]},
    "FalconH1": {**MLP, **HEADS, **SSD, "head_dim": 16, "mamba_d_ssm": 128},
    "MiniMax": {**HYBRID, "head_dim": 16, "num_local_experts": 2, "block_size": 8},
    "OlmoHybrid": {**HYBRID, **DELTA},
    "Qwen3_5": {**HYBRID, **DELTA, "head_dim": 16},
}
TOKENS = torch.randint(3, 64, (1, 24), generator=torch.Generator().manual_seed(0))
FIRST = 12


def new_model(name: str, **options: object) -> torch.nn.Module:
    """A small model with random weights, larger than usual, so that it remembers enough to show without training."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}TextConfig", None) or getattr(transformers, f"{name}Config")
    model = getattr(transformers, f"{name}ForCausalLM")(config(**{**SIZES, **MODELS[name], **options})).eval()
    for key, weight in model.named_parameters():
        if weight.dim() == 2 and "A_log" not in key:
            weight.mul_(4)
    return model


def behind(model: torch.nn.Module, tokens: torch.Tensor, step: int, positions: bool = True) -> torch.Tensor:
    """Logits of the second half of tokens, `step` at a time, with the cache of what came before."""
    parameters, found, cache, start = inspect.signature(model.forward).parameters, [], {}, 0
    for stop in (FIRST, *range(FIRST + step, tokens.shape[1] + 1, step)):
        where = {"position_ids": torch.arange(start, stop)[None]} if positions and "position_ids" in parameters else {}
        out = model(tokens[:, start:stop], use_cache=True, **cache, **where)
        name = "past_key_values" if "past_key_values" in parameters else "cache_params"
        cache, start = {name: out[name]}, stop
        found.append(out.logits)
    return torch.cat(found[1:], 1)


torch.set_grad_enabled(False)
for name in MODELS:
    model = new_model(name)
    whole = model(TOKENS, use_cache=False).logits[:, FIRST:]

    def said(found: torch.Tensor) -> str:
        return "right" if torch.allclose(found, whole, atol=1e-3, rtol=1e-3) else "wrong"

    each = [said(behind(model, TOKENS, *how)) for how in ((1,), (12,), (12, False))]
    print(f"{name}: one by one {each[0]}, 12 at once {each[1]}, without position_ids {each[2]}")
model, other = new_model("Mamba", num_hidden_layers=1), TOKENS.clone()
other[:, :8] = other[:, :8].flip(1)
same = [torch.equal(behind(model, TOKENS, step), behind(model, other, step)) for step in (1, 12)]
print(f"one layer of Mamba with another text 4 tokens before, the same logits: one by one {same[0]}, 12 at once {same[1]}")
PY
HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/second.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
transformers 5.23.0
Mamba: one by one right, 12 at once wrong, without position_ids wrong
FalconMamba: one by one right, 12 at once wrong, without position_ids wrong
Mamba2: one by one right, 12 at once right, without position_ids right
Jamba: one by one right, 12 at once wrong, without position_ids wrong
Bamba: one by one right, 12 at once right, without position_ids wrong
FalconH1: one by one right, 12 at once right, without position_ids right
MiniMax: one by one right, 12 at once wrong, without position_ids wrong
OlmoHybrid: one by one right, 12 at once right, without position_ids right
Qwen3_5: one by one right, 12 at once right, without position_ids right
one layer of Mamba with another text 4 tokens before, the same logits: one by one False, 12 at once True
SEEN
