"""The problems of recall by kind: codes of keys, chains of variables, and lists of made-up words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from sleep_data.text_windows import TextProblem
from sleep_data.word_lists import draw_keys, draw_names, draw_numbers, draw_words

REPETITIONS = 6
"""How often a common word stands in the text."""
EXPONENT = 1.5
"""Of the frequencies of words by their rank."""
WORD = 9
"""Bytes of a made-up word and a space."""
BATCH = 64
"""Words that are drawn together."""
TRIES = 200
"""Texts that are drawn until the frequent words differ in their numbers."""


def _listed(question: str, answers: Sequence[str]) -> list[tuple[str, str]]:
    """Turns that ask for several answers: `1:` first, `2:` second, ..."""
    return [(f"Question: {question}\n1:" if i == 1 else f"{i}:", answer) for i, answer in enumerate(answers, 1)]


def _problem(facts: Sequence[str], turns: Sequence[tuple[str, str]], n: int) -> TextProblem:
    """A problem whose instance is its facts in any order, and what is asked."""
    return TextProblem(facts, turns, n, "\n".join([*sorted(facts), *(prompt for prompt, _ in turns)]))


def _code(key: str, code: str) -> str:
    return f"The code of the {key} is {code}."


def multi_key(random: np.random.Generator, n: int, room: int) -> TextProblem:
    """The code of one of n keys."""
    keys, codes = draw_keys(random, n), draw_numbers(random, n)
    asked = random.integers(n)
    turns = [(f"Question: What is the code of the {keys[asked]}?\nAnswer:", codes[asked])]
    return _problem(list(map(_code, keys, codes)), turns, n)


def multi_value(random: np.random.Generator, n: int, room: int) -> TextProblem:
    """The n codes of one key, in the order of the text."""
    [key], codes = draw_keys(random, 1), draw_numbers(random, n)
    facts = [f"A code of the {key} is {code}." for code in codes]
    return _problem(facts, _listed(f"What are the codes of the {key}, in the order of the text?", codes), n)


def multi_query(random: np.random.Generator, n: int, room: int) -> TextProblem:
    """The codes of n keys, in random order."""
    keys, codes = draw_keys(random, n), draw_numbers(random, n)
    order = random.permutation(n).tolist()
    turns = [(f"{keys[i]}:", codes[i]) for i in order]
    turns[0] = (f"Question: What are the codes?\n{turns[0][0]}", turns[0][1])
    return _problem(list(map(_code, keys, codes)), turns, n)


def variables(random: np.random.Generator, n: int, room: int) -> TextProblem:
    """The variables of one of two chains of n + 1 variables, in the order of the text."""
    names, values = draw_names(random, 2 * (n + 1)), draw_numbers(random, 2)
    chains = [names[: n + 1], names[n + 1 :]]
    waiting = [
        [f"Variable {chain[0]} is {value}.", *(f"Variable {b} is equal to {a}." for a, b in pairwise(chain))]
        for chain, value in zip(chains, values, strict=True)
    ]  # fmt: skip
    which = random.permutation(np.repeat([0, 1], n + 1)).tolist()
    facts = [waiting[chain].pop(0) for chain in which]
    return _problem(facts, _listed(f"Which variables are {values[0]}, in the order of the text?", chains[0]), n)


def common_words(random: np.random.Generator, n: int, room: int) -> TextProblem:
    """The n words that stand several times; all others stand once."""
    common = sorted(draw_words(random, n))
    facts = random.permutation(np.repeat(common, REPETITIONS)).tolist()
    question = f"Which words of the list stand {REPETITIONS} times, in alphabetical order?"
    return TextProblem(facts, _listed(question, common), n, " ".join(common), filler=_other_words(random, common))


def _other_words(random: np.random.Generator, known: Sequence[str]) -> Iterator[str]:
    """New words without end."""
    seen = set(known)
    while True:
        new = [word for word in draw_words(random, BATCH) if word not in seen]
        seen.update(new)
        yield from new


def frequent_words(random: np.random.Generator, n: int, room: int) -> TextProblem:
    """The n most frequent words of a list, the most frequent one first. ValueError if so many cannot be told apart."""
    for _ in range(TRIES):
        _, word, counts = np.unique(random.zipf(EXPONENT, size=room // WORD), return_inverse=True, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        highest = counts[order[: n + 1]]
        if len(highest) == n + 1 and (highest[1:] < highest[:-1]).all():
            words = draw_words(random, len(counts))
            answers = [words[i] for i in order[:n].tolist()]
            question = f"Which {n} words of the list are most frequent, the most frequent one first?"
            facts = [words[i] for i in word.tolist()]
            return TextProblem(facts, _listed(question, answers), n, " ".join(answers), filler=iter(()))
    raise ValueError(
        f"sizes has {n}: the {n} most frequent of {room // WORD} words never differ in their numbers; take longer windows or a smaller "
        "size"
    )


Draw = Callable[[np.random.Generator, int, int], TextProblem]
"""Draws a problem of size n for a context of some tokens."""
KINDS: dict[str, Draw] = {
    "single": multi_key, "multi_key": multi_key, "multi_value": multi_value, "multi_query": multi_query,
    "variables": variables, "common_words": common_words, "frequent_words": frequent_words,
}  # fmt: skip
