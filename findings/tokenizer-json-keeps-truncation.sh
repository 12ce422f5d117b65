#!/usr/bin/env bash
# Guess: truncation and max_length are arguments of one call of a transformers tokenizer. What save_pretrained writes afterwards does not
#   depend on the calls before.
# Fact: the call sets them in the tokenizer, and save_pretrained writes them into tokenizer.json. transformers, which reads the file again,
#   ignores them; the tokenizers library obeys them: every document of Tokenizer.from_file is cut, and batches are padded.
# Why it matters: data pipelines use tokenizer.json with the tokenizers library, since it needs no transformers. A tokenizer that was
#   saved after an evaluation with max_length=512 cuts each document of the corpus at 512 tokens, and nothing is said. Call
#   no_truncation() and no_padding() after loading.
# Seen with transformers 5.23.0 and tokenizers 0.23.3.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install transformers==5.23.0 tokenizers==0.23.3 numpy==2.1.3 2>/dev/null
cat > "$folder/saved.py" <<'PY'
import sys

import tokenizers
import transformers

folder = sys.argv[1]
words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "[PAD]": 2}, unk_token="a"))
words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]")
documents = ["a b a b a b a b", "a"]

print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__)
for call in ("no call", "one call"):
    if call == "one call":
        tokenizer(documents, truncation=True, max_length=4, padding=True)
    tokenizer.save_pretrained(folder)
    file = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
    print(f"saved after {call}")
    print("  transformers:", transformers.AutoTokenizer.from_pretrained(folder)(documents).input_ids)
    print("  tokenizers:  ", [encoding.ids for encoding in file.encode_batch(documents)])
file.no_truncation()
file.no_padding()
print("  tokenizers, both switched off:", [encoding.ids for encoding in file.encode_batch(documents)])
PY
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/saved.py" "$folder/tokenizer" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
transformers 5.23.0 tokenizers 0.23.3
saved after no call
  transformers: [[0, 1, 0, 1, 0, 1, 0, 1], [0]]
  tokenizers:   [[0, 1, 0, 1, 0, 1, 0, 1], [0]]
saved after one call
  transformers: [[0, 1, 0, 1, 0, 1, 0, 1], [0]]
  tokenizers:   [[0, 1, 0, 1], [0, 2, 2, 2]]
  tokenizers, both switched off: [[0, 1, 0, 1, 0, 1, 0, 1], [0]]
SEEN
