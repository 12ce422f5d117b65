#!/usr/bin/env bash
# Guess: a byte-level BPE that is trained with the tokenizers library has a token for every byte: any text can be encoded, and decodes to itself.
# Fact: BpeTrainer takes the bytes that the training text has, unless initial_alphabet names all 256. Other bytes are dropped when a text is
#   encoded: no unknown token, no error. "2 + 2 = 4" becomes four spaces, and a character can lose one of its bytes. ByteLevelBPETokenizer of
#   the same library names all of them.
# Why it matters: a tokenizer that is trained on a sample, or on English text, loses digits, capitals, accents and whole scripts of the corpus. The
#   shards are shorter, the loss is lower, and a round trip over the sample is perfect. Pass initial_alphabet=ByteLevel.alphabet(), and
#   decode some text of every language that is to come.
# Seen with tokenizers 0.23.3.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install tokenizers==0.23.3 2>/dev/null
"$folder/venv/bin/python" - <<'PY' | tee "$folder/seen"
import tokenizers
from tokenizers import ByteLevelBPETokenizer, Tokenizer, decoders, models, pre_tokenizers, trainers

SAMPLE = ["the quick brown fox jumps over the lazy dog, and the cat naps in a café"] * 100
TEXTS = ("the lazy cat", "2 + 2 = 4", "The Cat", "naïve", "où", "狐")


def trained(**options):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(SAMPLE, trainers.BpeTrainer(vocab_size=400, show_progress=False, **options))
    return tokenizer


whole = ByteLevelBPETokenizer(add_prefix_space=False)
whole.train_from_iterator(SAMPLE, vocab_size=400, show_progress=False)
print("tokenizers", tokenizers.__version__)
for name, tokenizer in {
    "BpeTrainer()": trained(),
    "BpeTrainer(initial_alphabet=...)": trained(initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    "ByteLevelBPETokenizer": whole,
}.items():
    back = {text: tokenizer.decode(tokenizer.encode(text).ids) for text in (SAMPLE[0], *TEXTS)}
    print(f"{name}: {tokenizer.get_vocab_size()} tokens; the sample comes back: {back.pop(SAMPLE[0]) == SAMPLE[0]}")
    print("   ", ", ".join(f"{text!r} {'comes back' if text == other else f'is {other!r}'}" for text, other in back.items()))
PY
diff "$folder/seen" - <<'SEEN'
tokenizers 0.23.3
BpeTrainer(): 76 tokens; the sample comes back: True
    'the lazy cat' comes back, '2 + 2 = 4' is '    ', 'The Cat' is 'he at', 'naïve' is 'na�ve', 'où' is 'o�', '狐' is ''
BpeTrainer(initial_alphabet=...): 302 tokens; the sample comes back: True
    'the lazy cat' comes back, '2 + 2 = 4' comes back, 'The Cat' comes back, 'naïve' comes back, 'où' comes back, '狐' comes back
ByteLevelBPETokenizer: 302 tokens; the sample comes back: True
    'the lazy cat' comes back, '2 + 2 = 4' comes back, 'The Cat' comes back, 'naïve' comes back, 'où' comes back, '狐' comes back
SEEN
