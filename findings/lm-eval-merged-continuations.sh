#!/usr/bin/env bash
# Guess: the log-likelihood that lm-eval computes for a choice is that of all the text of the choice after the context, and of no other text.
# Fact: it encodes context and choice together and cuts off as many tokens as the context has alone. Where a token spans the boundary, the
#   first word of the choice is part of the context and is not scored, or the end of the context is scored with the choice. Nothing is said.
# Why it matters: choices of a question are then compared by different amounts of text, and the one that merges wins for having less to
#   predict. A space before the choice mostly prevents it in English. Tasks with an empty target_delimiter, code and languages without
#   spaces have it, and two models with different tokenizers are not compared on the same thing.
# Seen with lm-eval 0.4.13 and tokenizers 0.23.3.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install lm-eval==0.4.13 tokenizers==0.23.3 numpy==2.1.3 2>/dev/null
cat > "$folder/choices.py" <<'PY'
from importlib import metadata

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from tokenizers import Tokenizer
from tokenizers.models import BPE

print("lm-eval", metadata.version("lm-eval"), "tokenizers", metadata.version("tokenizers"))


class Uniform(TemplateLM):
    """Every token costs 1; it shows what it is asked for."""

    eot_token_id = 0

    def __init__(self, words: list[tuple[str, str]]) -> None:
        super().__init__()
        letters = "abcdex"
        vocabulary = {text: number for number, text in enumerate([*letters, *(first + second for first, second in words)])}
        self.tokenizer = Tokenizer(BPE(vocabulary, words))

    def tok_encode(self, text, **options):
        return self.tokenizer.encode(text).ids

    def _loglikelihood_tokens(self, requests, **options):
        for (context, choice), before, scored in requests:
            before, scored = ([self.tokenizer.id_to_token(token) for token in part] for part in (before, scored))
            print(f"{context!r} + {choice!r}: after {before} scores {scored}, log-likelihood {-len(scored)}")
        return [(-len(scored), True) for _, _, scored in requests]

    def loglikelihood_rolling(self, requests, **options):
        raise NotImplementedError

    def generate_until(self, requests, **options):
        raise NotImplementedError


def ask(words: list[tuple[str, str]], context: str, *choices: str) -> None:
    requests = [Instance("loglikelihood", {}, (context, choice), number) for number, choice in enumerate(choices)]
    scores = [score for score, _ in Uniform(words).loglikelihood(requests, disable_tqdm=True)]
    if len(choices) > 1:
        print(f"  the answer: {choices[scores.index(max(scores))]!r}")


MERGES = [("a", "b"), ("c", "d"), ("c", "e"), ("ab", "cd")]
ask(MERGES, "ab", "cdx", "cex")
ask([*MERGES, ("x", "x")], "abx", "cdx", "cex")
ask([("b", "c"), ("a", "b")], "ab", "c")
PY
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/choices.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
lm-eval 0.4.13 tokenizers 0.23.3
'ab' + 'cdx': after ['ab'] scores ['x'], log-likelihood -1
'ab' + 'cex': after ['ab'] scores ['ce', 'x'], log-likelihood -2
  the answer: 'cdx'
'abx' + 'cdx': after ['ab', 'x'] scores ['cd', 'x'], log-likelihood -2
'abx' + 'cex': after ['ab', 'x'] scores ['ce', 'x'], log-likelihood -2
  the answer: 'cdx'
'ab' + 'c': after ['ab'] scores ['bc'], log-likelihood -1
SEEN
