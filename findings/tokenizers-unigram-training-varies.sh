#!/usr/bin/env bash
# Guess: a tokenizer that is trained twice on the same text in the same order, with the same settings, is the same tokenizer.
# Fact: so it is for BPE. The tokens of a Unigram or a WordPiece vocabulary, or their numbers, differ from process to process. There is no seed to set, and one thread (RAYON_NUM_THREADS=1) does not help.
# Why it matters: the numbers of tokens are part of every shard and every checkpoint. A tokenizer that is trained again "from the
#   same recipe" does not match the data that were built with the first one: keep tokenizer.json beside the data and compare hashes.
# Seen with tokenizers 0.22.2.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install tokenizers==0.22.2 2>/dev/null
cat > "$folder/train.py" <<'PY'
import hashlib
import inspect
import json
import sys
import textwrap

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

KINDS = {
    "BPE": (models.BPE, trainers.BpeTrainer),
    "WordPiece": (models.WordPiece, trainers.WordPieceTrainer),
    "Unigram": (models.Unigram, trainers.UnigramTrainer),
}
# Text that every machine has: three modules of the standard library.
lines = [line for module in (inspect, json, textwrap) for line in inspect.getsource(module).splitlines()]
model, trainer = KINDS[sys.argv[1]]
tokenizer = Tokenizer(model())
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.train_from_iterator(lines, trainer(vocab_size=700, show_progress=False))
vocabulary = tokenizer.get_vocab()
print(hashlib.sha256(json.dumps(sorted(vocabulary, key=vocabulary.get)).encode()).hexdigest())
PY
echo "tokenizers $("$folder/venv/bin/python" -c 'import tokenizers; print(tokenizers.__version__)')"
different() { # number of different vocabularies in eight processes
    for _ in 1 2 3 4 5 6 7 8; do
        RAYON_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false "$folder/venv/bin/python" "$folder/train.py" "$1"
    done | sort -u | wc -l
}
bpe=$(different BPE)
wordpiece=$(different WordPiece)
unigram=$(different Unigram)
echo "different vocabularies of eight trainings, one thread: BPE $bpe, WordPiece $wordpiece, Unigram $unigram"
[ "$bpe" = 1 ]
[ "$wordpiece" -gt 1 ]
[ "$unigram" -gt 1 ]
