#!/usr/bin/env bash
# Guess: AutoTokenizer reads tokenizer.json as it is, since tokenizer_config.json names the class for that, PreTrainedTokenizerFast. What
#   config.json says of the model has no part in it.
# Fact: if config.json has model_type qwen2 or qwen3_5, AutoTokenizer takes the class of that model instead. It has the vocabulary and the merges
#   of the file, and rules of its own for where words begin and end. The text has other tokens, and decodes to itself. qwen3, qwen3_5_text
#   and llama keep the rules of the file, but the first two do so only while tokenizer_config.json names a class.
# Why it matters: a model of a known architecture, trained with a tokenizer of its own, is exported under that model_type. Evaluation and serving
#   then give it tokens that it has never seen in these places, and nothing is raised. PreTrainedTokenizerFast.from_pretrained reads the file.
# Seen with transformers 5.23.0 and tokenizers 0.23.3.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install transformers==5.23.0 tokenizers==0.23.3 numpy==2.1.3 2>/dev/null
cat > "$folder/rules.py" <<'PY'
import json
import sys
from pathlib import Path

import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers

print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__)
folder, text = Path(sys.argv[1]), "it was 2024\n  x = 12345"
own = tokenizers.Tokenizer(models.BPE())
own.pre_tokenizer, own.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
own.train_from_iterator([text] * 9, trainers.BpeTrainer(vocab_size=300, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
print("tokenizer.json:", *own.encode(text).tokens)


def describe(name, tokenizer):
    ids = tokenizer(text).input_ids
    same = "the tokens of the file" if ids == own.encode(text).ids else " ".join(tokenizer.convert_ids_to_tokens(ids))
    print(f"{name}: {type(tokenizer).__name__}, {same}; the same text: {tokenizer.decode(ids) == text}")


for kind in ("llama", "qwen3", "qwen3_5_text", "qwen2", "qwen3_5"):
    for named in ({"tokenizer_class": "PreTrainedTokenizerFast"}, {}):
        own.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(named))
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
        describe(f"{kind}, {'class named' if named else 'no class named'}", transformers.AutoTokenizer.from_pretrained(folder))
describe("qwen3_5, PreTrainedTokenizerFast", transformers.PreTrainedTokenizerFast.from_pretrained(folder))
PY
mkdir "$folder/model"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/rules.py" "$folder/model" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
transformers 5.23.0 tokenizers 0.23.3
tokenizer.json: it Ġwas Ġ2024 ĊĠ Ġx Ġ= Ġ12345
llama, class named: TokenizersBackend, the tokens of the file; the same text: True
llama, no class named: TokenizersBackend, the tokens of the file; the same text: True
qwen3, class named: TokenizersBackend, the tokens of the file; the same text: True
qwen3, no class named: Qwen2Tokenizer, it Ġwas Ġ 2 0 2 4 Ċ Ġ Ġx Ġ= Ġ 1 2 3 4 5; the same text: True
qwen3_5_text, class named: TokenizersBackend, the tokens of the file; the same text: True
qwen3_5_text, no class named: Qwen3_5Tokenizer, it Ġwas Ġ 2 0 2 4 Ċ Ġ Ġx Ġ= Ġ 1 2 3 4 5; the same text: True
qwen2, class named: Qwen2Tokenizer, it Ġwas Ġ 2 0 2 4 Ċ Ġ Ġx Ġ= Ġ 1 2 3 4 5; the same text: True
qwen2, no class named: Qwen2Tokenizer, it Ġwas Ġ 2 0 2 4 Ċ Ġ Ġx Ġ= Ġ 1 2 3 4 5; the same text: True
qwen3_5, class named: Qwen3_5Tokenizer, it Ġwas Ġ 2 0 2 4 Ċ Ġ Ġx Ġ= Ġ 1 2 3 4 5; the same text: True
qwen3_5, no class named: Qwen3_5Tokenizer, it Ġwas Ġ 2 0 2 4 Ċ Ġ Ġx Ġ= Ġ 1 2 3 4 5; the same text: True
qwen3_5, PreTrainedTokenizerFast: TokenizersBackend, the tokens of the file; the same text: True
SEEN
