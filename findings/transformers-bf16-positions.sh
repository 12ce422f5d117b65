#!/usr/bin/env bash
# Guess: model.to(torch.bfloat16) and from_pretrained(dtype=torch.bfloat16) give the same model. What a training has saved computes, when it is
#   loaded in the same type, what it computed in training.
# Fact: the frequencies of rotary positions are a buffer that to(), bfloat16() and half() round with the weights, and that is not saved.
#   from_pretrained and from_config with dtype= keep them in float32. In bf16 the angles at position 4,096 are off by up to 5 radians. The
#   loaded model has the exact ones: below, with equal parameters, most of its predictions after 4,000 tokens are others. Short texts agree.
# Why it matters: engines for bf16 cast a module with to() or bfloat16(). The model then learns rounded frequencies, and evaluation, export and the
#   next stage use the exact ones; the gap grows with the context, and to(torch.float32) does not bring them back. Make the model with dtype=,
#   or compute the buffer anew after the cast.
# Seen with transformers 5.23.0, torch 2.13.0 on a CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 transformers==5.23.0 numpy==2.1.3 2>/dev/null
cat > "$folder/positions.py" <<'PY'
import copy
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig

torch.manual_seed(0)
POSITION, BF16 = 4096, torch.bfloat16
config = LlamaConfig(
    vocab_size=64, hidden_size=128, intermediate_size=64, num_hidden_layers=2, num_attention_heads=1, num_key_value_heads=1,
    initializer_range=0.2, max_position_embeddings=2 * POSITION, attn_implementation="eager",
)
model = AutoModelForCausalLM.from_config(config).eval()
exact = model.model.rotary_emb.inv_freq.clone()
model.save_pretrained(f"{sys.argv[1]}/first")
made = {
    "from_config(dtype=)": AutoModelForCausalLM.from_config(config, dtype=BF16),
    "from_pretrained(dtype=)": AutoModelForCausalLM.from_pretrained(f"{sys.argv[1]}/first", dtype=BF16),
    "to(bfloat16)": copy.deepcopy(model).to(BF16),
    "to(bfloat16).to(float32)": copy.deepcopy(model).to(BF16).to(torch.float32),
    "half()": copy.deepcopy(model).half(),
}
print("transformers", transformers.__version__, "torch", torch.__version__.split("+")[0])
for name, other in made.items():
    found = other.model.rotary_emb.inv_freq
    error = POSITION * (found.double() - exact.double()).abs().max()
    print(f"{name:25} frequencies {found.dtype}, angles at {POSITION} off by up to {error:.1f}")

trained = made["to(bfloat16)"].eval()
trained.save_pretrained(f"{sys.argv[1]}/trained")
loaded = AutoModelForCausalLM.from_pretrained(f"{sys.argv[1]}/trained", dtype=BF16).eval()
pairs = zip(trained.named_parameters(), loaded.named_parameters())
print("saved and loaded: equal parameters", all(name == other and torch.equal(a, b) for (name, a), (other, b) in pairs))
text = torch.randint(config.vocab_size, (1, 4032))
with torch.no_grad():
    same = (trained(text).logits.argmax(-1) == loaded(text).logits.argmax(-1))[0].float()
for start in (0, 4000):
    share = same[start : start + 32].mean()
    words = "more than 90 %" if share > 0.9 else "less than half" if share < 0.5 else "more than half"
    print(f"tokens {start} to {start + 32}: {words} of the predictions agree")
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/positions.py" "$folder" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
transformers 5.23.0 torch 2.13.0
from_config(dtype=)       frequencies torch.float32, angles at 4096 off by up to 0.0
from_pretrained(dtype=)   frequencies torch.float32, angles at 4096 off by up to 0.0
to(bfloat16)              frequencies torch.bfloat16, angles at 4096 off by up to 5.0
to(bfloat16).to(float32)  frequencies torch.float32, angles at 4096 off by up to 5.0
half()                    frequencies torch.float16, angles at 4096 off by up to 1.0
saved and loaded: equal parameters True
tokens 0 to 32: more than 90 % of the predictions agree
tokens 4000 to 4032: less than half of the predictions agree
SEEN
