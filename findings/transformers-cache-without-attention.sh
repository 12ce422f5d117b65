#!/usr/bin/env bash
# Guess: a Qwen3.5 model of linear attention layers alone generates with a cache: its recurrent states are all that it needs.
# Fact: transformers asks the cache for its sequence length, which only attention layers know, and raises ValueError at the first
#   forward with a cache. Without a cache the same model runs.
# Why it matters: a stack of Gated DeltaNet blocks is a usual baseline of hybrids. Exported, it generates in transformers only with
#   use_cache=False, at a cost that grows with the text, or with code that tracks positions itself.
# Seen with transformers 5.23.0, torch 2.13.0 on a CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 transformers==5.23.0 2>/dev/null
cat > "$folder/generate.py" <<'PY'
import torch
import transformers
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

transformers.logging.set_verbosity_error()
sizes = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    head_dim=16, linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=2,
)
tokens = torch.arange(5)[None]


def outcome(layers, **options):
    torch.manual_seed(0)
    model = Qwen3_5ForCausalLM(Qwen3_5TextConfig(**sizes, layer_types=layers)).eval()
    try:
        return f"{model.generate(tokens, max_new_tokens=4, do_sample=False, **options).shape[1] - 5} tokens"
    except ValueError as error:
        return f"ValueError: {error}"


print(f"transformers {transformers.__version__}, torch {torch.__version__}")
hybrid = outcome(["linear_attention", "full_attention"])
cached, plain = outcome(["linear_attention"] * 2), outcome(["linear_attention"] * 2, use_cache=False)
print("with one attention layer:   ", hybrid)
print("without one:                ", cached)
print("without one, without a cache:", plain)
assert hybrid == plain == "4 tokens" and cached.startswith("ValueError") and "get_seq_length" in cached
PY
"$folder/venv/bin/python" "$folder/generate.py" 2>/dev/null
