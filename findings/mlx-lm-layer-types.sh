#!/usr/bin/env bash
# Guess: mlx-lm places the attention layers of a Qwen3.5 model where `layer_types` of config.json has them, as transformers does.
# Fact: its Qwen3.5 model reads `full_attention_interval` alone, 4 by default. A config.json that lists its layers and names no interval
#   gives another stack without a message; weights in the listed order are then refused as missing and unexpected parameters.
# Why it matters: a stack that begins with attention, such as AGAG, is valid for transformers and cannot be read by mlx-lm, and an
#   exporter must write both fields where the pattern has an interval.
# Seen with mlx-lm 0.32.2, mlx 0.32.4 on Linux, CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install mlx==0.32.4 mlx-cpu==0.32.4 mlx-lm==0.32.2 transformers==5.23.0 2>/dev/null
cat > "$folder/layers.py" <<'PY'
from importlib import metadata

import mlx.core as mx
from mlx_lm.models import qwen3_5

mx.set_default_device(mx.cpu)
listed = ["full_attention", "linear_attention"] * 2
config = {
    "model_type": "qwen3_5", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_conv_kernel_dim": 4, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 512, "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
    "layer_types": listed,
}


def built(config):
    model = qwen3_5.Model(qwen3_5.ModelArgs.from_dict(config))
    return ["linear_attention" if layer.is_linear else "full_attention" for layer in model.layers]


print(f"mlx-lm {metadata.version('mlx-lm')}, mlx {metadata.version('mlx')}")
print("listed:               ", listed)
print("built:                ", built(config))
print("with an interval of 2:", built(config | {"full_attention_interval": 2}))
assert built(config) == ["linear_attention"] * 3 + ["full_attention"]
assert built(config | {"full_attention_interval": 2}) == ["linear_attention", "full_attention"] * 2
PY
"$folder/venv/bin/python" "$folder/layers.py"
