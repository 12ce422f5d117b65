"""Recall: find facts in a long text after its eviction, in the manner of RULER (Hsieh et al., arXiv 2404.06654).

The kinds, and n, of which each sample draws one of `sizes`:

    single          one code of one key, n = 1
    multi_key       n keys with one code each, one of which is asked
    multi_value     n codes of one key, all of which are asked in the order of the text
    multi_query     n keys with one code each, all of which are asked in random order
    variables       two chains of variables with n assignments after the first, where each variable is equal to the one before it;
                    asked are the n + 1 variables of one chain, in the order of the text
    common_words    n words that stand 6 times among words that stand once, asked in alphabetical order
    frequent_words  words with frequencies as rank to the power of -1.5; asked are the n most frequent ones, in that order

A key is an adjective and a noun, a code a number of seven digits. The facts of the first five kinds are hidden in filler; the
last two are lists of made-up words. Frequent words fill the context at byte level; with a tokenizer file there may be padding.

Scoring. RULER scores the share of the expected strings that the output contains. Here each of them is an answer of its own in the
last window (`text_windows.py` has the layout), and evaluation reports the share of exact answers, given the true answers before
them. It counts an answer as right only if all its tokens and its end are right.

Splits. A problem belongs to the test split with probability 1/holdout, by a hash of its facts in any order (of the asked words in
the last two kinds) and its question. No test problem occurs in training, whatever the seeds and the filler.

`groups` holds n at the tokens of answers. Label: `n`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sleep_data.haystack import HaystackTask
from sleep_data.recall_kinds import KINDS
from sleep_data.task import raise_if
from sleep_data.text_task import numbers
from sleep_data.text_windows import TextProblem
from sleep_data.word_lists import KEYS


@dataclass(frozen=True)
class Recall(HaystackTask):
    """Parameters of the task."""

    kind: str = "single"
    sizes: int | tuple[int, ...] = 1
    """n; if there are several, each sample draws one of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        raise_if(self.kind not in KINDS, f"kind is {self.kind!r}; it must be one of {', '.join(KINDS)}")
        sizes = self._sizes
        raise_if(self.kind == "single" and sizes != (1,), f"sizes is {self.sizes}; kind single has one key: sizes=1")

    name = "recall"
    version = 2
    label = "n"

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        """All values of n."""
        return numbers("sizes", self.sizes, 1, KEYS)

    def labels(self) -> dict[str, str]:
        return {"n": f"number of what is told apart or listed: see kind {self.kind}"}

    def draw(self, random: np.random.Generator) -> TextProblem:
        n = self._sizes[random.integers(len(self._sizes))]
        return KINDS[self.kind](random, n, self.layout.room)

    def baselines(self) -> dict[str, dict[str, float]]:
        """Frequencies and, where several codes or variables stand in the text, the success of giving any of them."""
        table = super().baselines()
        for n, scores in table.items():
            named = {"multi_key": int(n), "multi_value": int(n), "multi_query": int(n), "variables": 2 * (int(n) + 1)}
            if named.get(self.kind, 1) > 1:
                scores["exact_chance"] = 1 / named[self.kind]
        return table
