"""Text tasks: the split of a problem, the encoding of segments, and samples that do not depend on the range."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from sleep_data.recall import Recall
from sleep_data.text_task import TextTask
from sleep_data.text_windows import TextProblem
from tests.sleep_data.samples_of_text import read_sample


@dataclass(frozen=True)
class Few(TextTask):
    """Asks for one of `problems` numbers."""

    problems: int = 60

    name = "few"
    version = 1
    label = "n"

    def labels(self):
        return {"n": "the last digit of the number", "tens": "its other digits"}

    def draw(self, random):
        number = int(random.integers(self.problems))
        facts, turns = [f"It is {number}."], [("Question: Which?\nAnswer:", str(number))]
        return TextProblem(facts, turns, number % 10, str(number), {"tens": number // 10}, lead="Read this.")


def test_every_problem_belongs_to_one_split():
    task = Few(window=16, windows_of_context=2, window_of_question=40, holdout=3)
    found = {}
    for split in ("train", "test"):
        rows = task.generate(split, 0, 600, seed=1)
        samples = [read_sample(task, rows, row) for row in range(600)]
        found[split] = {sample.turns[0][1] for sample in samples}
        for sample, tens in zip(samples, rows["label_tens"], strict=True):
            [(prompt, number)] = sample.turns
            assert (sample.context, prompt) == (f" Read this. It is {number}.", "Question: Which?\nAnswer:")
            assert tens == int(number) // 10
    assert not found["train"] & found["test"]
    assert found["train"] | found["test"] == set(map(str, range(60))) and 8 < len(found["test"]) < 35
    assert list(task.baselines()) == [str(n) for n in range(10)]


def test_a_split_without_problems():
    with pytest.raises(ValueError, match=r"no problem of the (train|test) split of few was found"):
        for split in ("train", "test"):
            Few(problems=1).generate(split, 0, 1)


def test_windows_and_the_last_samples_of_a_range():
    task = Few(window=16, windows_of_context=2, window_of_question=40)
    assert [(w.start, w.stop, w.targets) for w in task.windows()] == [(0, 16, False), (16, 32, False), (32, 72, True)]
    assert [len(block["id"]) for block in Few(window=2**21).blocks("train", 3, 0)] == [1, 1, 1], (
        "long samples come alone"
    )
    with pytest.raises(ValueError, match="rows 3 to 3"):
        task.generate("train", 3, 3)


def test_a_tokenizer_file_encodes_every_segment_by_itself(tmp_path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters | {"Ġc": 256, "od": 257}, merges=[("Ġ", "c"), ("o", "d")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    task = Recall(kind="multi_key", sizes=3, window=128, tokenizer=str(tmp_path / "tokenizer.json"))
    assert (task.vocabulary().size, task.vocabulary().pad) == (260, 259) and task.inputs() is not None
    rows = task.generate("train", 0, 30)
    for tokens, targets in zip(rows["tokens"].tolist(), rows["targets"].tolist(), strict=True):
        context, question, target = (
            tokenizer.decode([i for i in part if 0 <= i < 258]) for part in (tokens[:512], tokens[512:], targets)
        )
        prompt, answer = re.fullmatch(r"(.*\?\nAnswer:)( \d+\n)", question, re.DOTALL).groups()
        [asked] = re.findall(r"code of the (.*)\?", prompt)
        assert f" The code of the {asked} is{answer[:-1]}." in context and target == answer
        assert 258 in tokens and sum(i < 258 for i in tokens[:512]) > 400 and {256, 257} <= set(tokens)
