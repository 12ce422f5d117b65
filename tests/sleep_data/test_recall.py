"""Recall: answers against a reader of the text, filler, disjoint splits, and refused parameters."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from sleep_data import recall_kinds, word_lists
from sleep_data.filler import SENTENCES
from sleep_data.recall import Recall
from sleep_data.recall_kinds import KINDS
from tests.sleep_data.samples_of_text import TextSample, read_sample, sentences

SIZES = {kind: 1 if kind == "single" else (1, 2, 3) for kind in KINDS}
FACT = re.compile(r"The code of|A code of|Variable ")


def task_of(kind: str, **changes) -> Recall:
    return Recall(**({"kind": kind, "sizes": SIZES[kind], "window": 128, "windows_of_context": 4} | changes))


def solve(sample: TextSample) -> list[str]:
    """The answers, found in the text alone."""
    question = sample.turns[0][0]
    codes = re.findall(r" code of the ([a-z]+ [a-z]+) is (\d{7})\.", sample.context)
    if match := re.search(r"What is the code of the (.*)\?\nAnswer:$", question):
        return [dict(codes)[match[1]]]
    if match := re.search(r"What are the codes of the (.*), in the order of the text\?\n1:$", question):
        return [code for key, code in codes if key == match[1]]
    if question.startswith("Question: What are the codes?\n"):
        keys = [prompt.splitlines()[-1].rstrip(":") for prompt, _ in sample.turns]
        return [dict(codes)[key] for key in keys]
    if match := re.search(r"Which variables are (\d+), in the order of the text\?\n1:$", question):
        value: dict[str, str] = {}
        for name, _, source in re.findall(r"Variable ([A-Z]+) is (equal to )?(\w+)\.", sample.context):
            value[name] = value.get(source, source)
        return [name for name in value if value[name] == match[1]]
    counts = Counter(sample.context.split())
    if "in alphabetical order" in question:
        assert set(counts.values()) == {1, 6}
        return sorted(word for word in counts if counts[word] == 6)
    match = re.search(r"Which (\d+) words of the list are most frequent, the most frequent one first\?\n1:$", question)
    ranked = counts.most_common(int(match[1]) + 1)
    assert len({count for _, count in ranked}) == len(ranked)
    return [word for word, _ in ranked[:-1]]


@pytest.mark.parametrize("samples", [200, pytest.param(10_000, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_follow_from_the_text(kind, samples):
    task = task_of(kind)
    for split, count in (("train", samples), ("test", samples // 4)):
        rows = task.generate(split, 0, count, seed=1)
        for row in range(count):
            sample = read_sample(task, rows, row)
            assert [answer for _, answer in sample.turns] == solve(sample)
            n = rows["label_n"][row]
            assert len(sample.turns) == {"single": 1, "multi_key": 1, "variables": n + 1}.get(kind, n)
            if kind in ("multi_value", "variables", "common_words", "frequent_words"):
                assert [prompt.splitlines()[-1] for prompt, _ in sample.turns] == [
                    f"{i}:" for i in range(1, len(sample.turns) + 1)
                ]
        assert set(rows["label_n"].tolist()) == ({1} if kind == "single" else {1, 2, 3})


@pytest.mark.parametrize("kind", ["multi_key", "variables"])
def test_facts_stand_anywhere_between_consecutive_sentences_of_filler(kind):
    task = task_of(kind, sizes=3)
    rows = task.generate("train", 0, 400)
    places = []
    for row in range(400):
        read = sentences(read_sample(task, rows, row).context)
        filler = [sentence for sentence in read if not FACT.match(sentence)]
        first = SENTENCES.index(filler[0])
        assert filler == [SENTENCES[(first + i) % len(SENTENCES)] for i in range(len(filler))]
        places += [i / (len(read) - 1) for i, sentence in enumerate(read) if FACT.match(sentence)]
    assert np.histogram(places, bins=4, range=(0, 1))[0].min() > len(places) / 6
    longest = max(map(len, SENTENCES)) + 1
    assert ((rows["tokens"][:, :512] == 257).sum(axis=1) < longest).all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_test_problem_occurs_in_training(kind, monkeypatch):
    """With so few words that the same problem is drawn many times."""
    monkeypatch.setattr(word_lists, "KEYS", 3)
    monkeypatch.setattr(word_lists, "_SYLLABLES", np.array(["ba", "do", "fi", "gu", "ke", "mo"]))
    few = {"draw_numbers": [f"{i}000000" for i in range(1, 7)], "draw_names": ["ABCDE", "FGHIJ", "KLMNO", "PQRST"]}
    for name, words in few.items():
        monkeypatch.setattr(
            recall_kinds, name, lambda random, n, words=words: random.choice(words, n, replace=False).tolist()
        )
    task = task_of(kind, sizes=1, window=64, windows_of_context=5, holdout=2)
    found, drawn = {}, 400
    for split in ("train", "test"):
        rows = [task.generate(split, 0, drawn // 2, seed) for seed in (0, 1)]
        samples = [read_sample(task, part, row) for part in rows for row in range(drawn // 2)]
        found[split] = {instance(sample, kind) for sample in samples}
    assert not found["train"] & found["test"]
    assert all(5 < len(instances) < 0.9 * drawn for instances in found.values())


def instance(sample: TextSample, kind: str) -> tuple[str, ...]:
    if kind in ("common_words", "frequent_words"):
        return tuple(answer for _, answer in sample.turns)
    facts = [sentence for sentence in sentences(sample.context) if FACT.match(sentence)]
    return (*sorted(facts), *(prompt for prompt, _ in sample.turns))


def test_a_missing_folder_of_filler_is_named_by_its_key(tmp_path):
    with pytest.raises(ValueError, match=r"^filler: .*/nothing does not exist"):
        task_of("multi_key", filler=str(tmp_path / "nothing")).generate("test", 0, 20)


def test_filler_is_the_sentences_of_the_users_documents(tmp_path):
    (tmp_path / "a.txt").write_text(
        "One sentence here.  Another\nsentence there! Short. A third sentence?\n\nThe end of it"
    )
    plain, own = task_of("multi_key"), task_of("multi_key", filler=str(tmp_path))
    facts = [
        re.findall(r"The code of the \w+ \w+ is \d+\.", read_sample(task, task.generate("test", 0, 20), 7).context)
        for task in (plain, own)
    ]
    assert facts[0] == facts[1], "the problems are the same with any filler"
    context = read_sample(own, own.generate("test", 0, 20), 7).context
    for fact in facts[1]:
        context = context.replace(f" {fact}", "")
    cycle = " One sentence here. Another sentence there! A third sentence? The end of it"
    assert context in cycle * 20 and len(context) > 300
    assert plain.inputs() is None
    before = own.inputs()
    (tmp_path / "a.txt").write_text("Other sentences stand here now.")
    assert task_of("multi_key", filler=(str(tmp_path),)).inputs() != before


def test_samples_do_not_depend_on_the_requested_range():
    task = task_of("frequent_words")
    complete = task.generate("train", 0, 30, seed=5)
    for name, column in task.generate("train", 12, 20, seed=5).items():
        assert np.array_equal(column, complete[name][12:20]), name
    assert not np.array_equal(complete["tokens"], task.generate("train", 0, 30, seed=6)["tokens"])


def test_baselines():
    keys = task_of("multi_key").baselines()
    assert keys["2"]["exact_chance"] == 0.5 and "exact_chance" not in keys["1"]
    assert task_of("variables").baselines()["3"]["exact_chance"] == 1 / 8
    single = task_of("single").baselines()["1"]
    assert "exact_chance" not in single and single["exact_majority"] < 0.01


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"kind": "singel"}, "kind is 'singel'; it must be one of single"),
        ({"sizes": 2}, "kind single has one key"),
        ({"kind": "multi_key", "sizes": 600}, "sizes is 600; give one or more numbers from 1 to 576"),
        ({"kind": "multi_key", "sizes": 0}, "sizes is 0"),
        ({"kind": "multi_key", "sizes": (2, 2)}, "listed twice"),
        ({"window": 0}, "window is 0"),
        ({"holdout": 1}, "holdout is 1"),
    ],
)
def test_wrong_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        Recall(**parameters)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"window": 8}, r"of 31 tokens of context \(windows_of_context=4, window=8\)"),
        ({"window_of_question": 32}, "of window_of_question=32; take longer"),
        ({"kind": "frequent_words", "sizes": 9}, "the 9 most frequent of 113 words never differ"),
        ({"filler": ("missing.txt",)}, "missing.txt does not exist"),
        ({"filler": ("short.txt",)}, "no sentence of 10 to 300 characters under short.txt"),
    ],
)
def test_what_cannot_be_generated(tmp_path, monkeypatch, parameters, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("Too. Short.")
    with pytest.raises(ValueError, match=message):
        Recall(**parameters).generate("test", 0, 4)
