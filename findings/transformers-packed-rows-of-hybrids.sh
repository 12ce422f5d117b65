#!/usr/bin/env bash
# Guess: documents that are packed into one row for a Qwen3.5 model of transformers, with positions that begin again at 0, are kept apart
#   by all layers or by none, as the attention layers keep them apart.
# Fact: attention layers find the documents in the positions. Gated DeltaNet layers do not look at them: convolution and state run on
#   from one document into the next, with no warning. They want cu_seq_lens_q and seq_idx of the collator, and raise ValueError for
#   them where flash-linear-attention and causal_conv1d are missing.
# Why it matters: DataCollatorWithFlattening gives positions alone by default. A hybrid that is trained or evaluated so carries states of
#   one document into another, and a check with a model of attention alone finds the packing exact.
# Seen with transformers 5.23.0, torch 2.13.0 on a CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 transformers==5.23.0 numpy==2.1.3 2>/dev/null
cat > "$folder/packed.py" <<'PY'
import torch
import transformers
from transformers import DataCollatorWithFlattening, Qwen3_5ForCausalLM, Qwen3_5TextConfig

print("transformers", transformers.__version__)
documents = [{"input_ids": list(range(1, 9))}, {"input_ids": list(range(20, 28))}]
for layers in (["full_attention"] * 2, ["linear_attention", "full_attention"]):
    torch.manual_seed(0)
    config = Qwen3_5TextConfig(
        vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=16,
        linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=16, linear_value_head_dim=16, layer_types=layers,
    )
    model = Qwen3_5ForCausalLM(config).eval()
    for options in ({}, {"return_flash_attn_kwargs": True}, {"return_seq_idx": True}):
        row = DataCollatorWithFlattening(return_tensors="pt", **options)(documents)
        del row["labels"]
        with torch.no_grad():
            alone = model(torch.tensor([documents[1]["input_ids"]]), use_cache=False).logits
            try:
                apart = torch.allclose(model(**row, use_cache=False).logits[:, 8:], alone, atol=1e-5)
                said = "as alone" if apart else "not as alone"
            except ValueError:
                said = "refused with ValueError"
        print(f"{' '.join(layers)}, {' '.join(options) or 'positions alone'}: the second document is {said}")
PY
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/packed.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
transformers 5.23.0
full_attention full_attention, positions alone: the second document is as alone
full_attention full_attention, return_flash_attn_kwargs: the second document is as alone
full_attention full_attention, return_seq_idx: the second document is as alone
linear_attention full_attention, positions alone: the second document is not as alone
linear_attention full_attention, return_flash_attn_kwargs: the second document is refused with ValueError
linear_attention full_attention, return_seq_idx: the second document is refused with ValueError
SEEN
