#!/usr/bin/env bash
# Guess: beam search of a recurrent model in transformers reorders its states with the beams, or refuses, as that of Rwkv does. The score
#   that generate() returns is the log-likelihood of the text that it returns.
# Fact: MiniMax and RecurrentGemma do neither. A beam that moves to another place of the batch goes on with the state of the beam that was
#   there: the text differs from the one found without a cache, and the score belongs to another text. RecurrentGemma's is off by a
#   factor of two here. Mamba2, FalconH1, OlmoHybrid and Qwen3.5 are right. Nothing is said.
# Why it matters: baselines are compared by beam search on tasks of translation and reasoning with the same call for all models; two lose by
#   their cache. use_cache=False gives the right text.
# Seen with transformers 5.23.0, torch 2.13.0 on a CPU, without kernels for state-space models.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 transformers==5.23.0 numpy==2.1.3 2>/dev/null
cat > "$folder/beams.py" <<'PY'
import torch
import transformers

print("transformers", transformers.__version__)
SIZES = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
HYBRID = {"intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "layer_types": ["linear_attention", "full_attention"]}
DELTA = {"linear_num_key_heads": 4, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
MODELS = {
    "Mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 8},
    "Qwen3_5": {**HYBRID, **DELTA, "head_dim": 16},
    "OlmoHybrid": {**HYBRID, **DELTA},
    "MiniMax": {**HYBRID, "head_dim": 16, "num_local_experts": 2, "block_size": 8},
    "RecurrentGemma": {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 128, "lru_width": 64,
                       "block_types": ["recurrent", "attention"], "attention_window_size": 64},
}
PROMPT = torch.randint(3, 64, (1, 24), generator=torch.Generator().manual_seed(0))


def new_model(name: str) -> torch.nn.Module:
    """A small model with random weights, larger than usual, so that texts differ in likelihood without training."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}TextConfig", None) or getattr(transformers, f"{name}Config")
    model = getattr(transformers, f"{name}ForCausalLM")(config(**SIZES, **MODELS[name])).eval()
    for key, weight in model.named_parameters():
        if weight.dim() == 2 and "A_log" not in key:
            weight.mul_(4)
    return model


torch.set_grad_enabled(False)
for name in MODELS:
    model = new_model(name)
    # length_penalty=0: the score is the sum of the log-likelihoods of the tokens.
    options = {"max_new_tokens": 12, "num_beams": 4, "do_sample": False, "eos_token_id": None, "length_penalty": 0.0}
    found = {
        cache: model.generate(PROMPT, use_cache=cache, return_dict_in_generate=True, output_scores=True, **options)
        for cache in (True, False)
    }
    text = found[True].sequences
    likelihoods = model(text, use_cache=False).logits.log_softmax(-1)
    exact = likelihoods[0, PROMPT.shape[1] - 1 : -1].gather(1, text[0, PROMPT.shape[1] :, None]).sum().item()
    score, same = found[True].sequences_scores[0].item(), torch.equal(text, found[False].sequences)
    verdict = "right" if abs(score - exact) < 0.01 else "of another text"
    print(f"{name}: text with a cache {'as' if same else 'not as'} without; its score is {verdict}")
    if name == "RecurrentGemma":
        print(f"  score {score:.0f}, log-likelihood of the text {exact:.0f}")
PY
"$folder/venv/bin/python" "$folder/beams.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
transformers 5.23.0
Mamba2: text with a cache as without; its score is right
Qwen3_5: text with a cache as without; its score is right
OlmoHybrid: text with a cache as without; its score is right
MiniMax: text with a cache not as without; its score is of another text
RecurrentGemma: text with a cache not as without; its score is of another text
  score -18, log-likelihood of the text -40
SEEN
