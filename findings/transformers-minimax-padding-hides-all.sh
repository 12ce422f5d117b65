#!/usr/bin/env bash
# Guess: a causal language model of transformers generates the same for a prompt alone and for the prompt with padding on its left, which
#   attention_mask leaves out, as it stands in a batch with a longer one. With and without a cache it is the same, too.
# Fact: so it is for Qwen3.5, Bamba and other hybrids of recurrent and attention layers, and for MiniMax without a cache. With a cache and
#   a linear layer first, as in MiniMax-Text-01 (arXiv 2501.08313), MiniMax takes the cached length of that layer, 0, for the length of all: the mask has
#   one key, the first one, which is padding, and is broadcast. From the second new token on the attention layers of a padded row attend
#   to nothing, and give zeros. There is no warning, the first new token is right, and so are rows without padding.
# Why it matters: evaluations generate in batches, with padding on the left. A hybrid that is compared with this one is compared with a
#   model of which a part is switched off for every prompt but the longest of its batch.
# Seen with transformers 5.23.0, torch 2.13.0 on a CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 transformers==5.23.0 numpy==2.1.3 2>/dev/null
cat > "$folder/padded.py" <<'PY'
import torch
import transformers
from transformers import MiniMaxConfig, MiniMaxForCausalLM, Qwen3_5ForCausalLM, Qwen3_5TextConfig

print("transformers", transformers.__version__)
SIZES = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
PROMPT, NEW = torch.arange(3, 15)[None], [20, 21, 22]


def generated(model: torch.nn.Module, padding: int, cache: bool) -> tuple[torch.Tensor, list[bool]]:
    """Logits of four new tokens behind a padded prompt, the first three given; for which of them the attention layer gives zeros."""
    row, zeros = torch.cat([torch.zeros(1, padding, dtype=torch.long), PROMPT], 1), []
    [attention] = [layer.self_attn for layer in model.model.layers if hasattr(getattr(layer, "self_attn", None), "q_proj")]
    hook = attention.o_proj.register_forward_pre_hook(lambda _, inputs: zeros.append(not inputs[0][:, -1].any().item()))

    def given(batch: int, tokens: torch.Tensor) -> list[int]:
        at = len(tokens) - row.shape[1]
        return [NEW[at]] if at < len(NEW) else list(range(64))

    made = model.generate(
        row, attention_mask=(row != 0).long(), max_new_tokens=4, do_sample=False, use_cache=cache, output_logits=True,
        return_dict_in_generate=True, prefix_allowed_tokens_fn=given,
    )
    hook.remove()
    return torch.stack(made.logits)[:, 0], zeros


for name, kind, config, more in (
    ("Qwen3.5", Qwen3_5ForCausalLM, Qwen3_5TextConfig, LINEAR),
    ("MiniMax", MiniMaxForCausalLM, MiniMaxConfig, {"num_local_experts": 2, "block_size": 8}),
):
    for layers in (["linear_attention", "full_attention"], ["full_attention", "linear_attention"]):
        torch.manual_seed(0)
        model = kind(config(**SIZES, **more, layer_types=layers)).eval()
        for cache in (False, True):
            alone, _ = generated(model, 0, cache)
            padded, zeros = generated(model, 5, cache)
            equal = [torch.allclose(one, other, atol=1e-5) for one, other in zip(padded, alone, strict=True)]
            print(f"{name}, {' '.join(layers)}, cache {cache}: as alone {equal}, attention gives zeros {zeros}")
PY
HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/padded.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
transformers 5.23.0
Qwen3.5, linear_attention full_attention, cache False: as alone [True, True, True, True], attention gives zeros [False, False, False, False]
Qwen3.5, linear_attention full_attention, cache True: as alone [True, True, True, True], attention gives zeros [False, False, False, False]
Qwen3.5, full_attention linear_attention, cache False: as alone [True, True, True, True], attention gives zeros [False, False, False, False]
Qwen3.5, full_attention linear_attention, cache True: as alone [True, True, True, True], attention gives zeros [False, False, False, False]
MiniMax, linear_attention full_attention, cache False: as alone [True, True, True, True], attention gives zeros [False, False, False, False]
MiniMax, linear_attention full_attention, cache True: as alone [True, False, False, False], attention gives zeros [False, True, True, True]
MiniMax, full_attention linear_attention, cache False: as alone [True, True, True, True], attention gives zeros [False, False, False, False]
MiniMax, full_attention linear_attention, cache True: as alone [True, True, True, True], attention gives zeros [False, False, False, False]
SEEN
