"""Tokenizers: bytes, tokenizer files with everything they may configure, and long texts in pieces."""

import pickle
import random
from dataclasses import replace

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from sleep_data import tokenize as module
from sleep_data.build import build
from sleep_data.tokenize import FileTokenizer, encode_document, open_tokenizer
from sleep_data.train_tokenizer import train_tokenizer
from sleep_data.word_problems import WordProblems

WORDS = models.WordLevel({"to": 0, "be": 1, "or": 2, "not": 3, "?": 4}, unk_token="?")


def saved(folder, model=WORDS, configure=lambda tokenizer: None):
    """A tokenizer file of words that spaces divide."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    configure(tokenizer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return FileTokenizer(str(folder / "tokenizer.json"))


def ids(tokenizer, text):
    return encode_document(tokenizer, text).tolist()


def test_bytes():
    tokenizer = open_tokenizer(None)
    assert ids(tokenizer, b"a\xff") == [256, 97, 255] and tokenizer.vocabulary.size == 258


def test_tokenizer_file(tmp_path):
    tokenizer = saved(tmp_path)
    assert (tokenizer.vocabulary.size, tokenizer.vocabulary.pad, tokenizer.bos) == (7, 6, 5)
    assert ids(tokenizer, b"to be or not to be") == [5, 0, 1, 2, 3, 0, 1]
    (tmp_path / "a.txt").write_text("no tokenizer")
    with pytest.raises(ValueError, match=r"a\.txt cannot be read as a tokenizer\.json"):
        FileTokenizer(str(tmp_path / "a.txt"))


def test_truncation_and_padding_of_a_tokenizer_file_do_not_touch_documents(tmp_path):
    tokenizer = saved(tmp_path, configure=lambda one: (one.enable_truncation(2), one.enable_padding(length=64)))
    assert ids(tokenizer, b"to be or not to be") == [5, 0, 1, 2, 3, 0, 1]


def test_the_text_of_a_special_token_is_text(tmp_path):
    """A document about tokenizers must not end where it mentions the end of a document; decoding shows special tokens."""
    letters = {letter: i for i, letter in enumerate("<|end>ofx")}
    special = [AddedToken("<|end|>", special=True)]
    tokenizer = saved(tmp_path, models.BPE(vocab=letters, merges=[]), lambda one: one.add_special_tokens(special))
    assert tokenizer.bos == 10
    assert ids(tokenizer, b"x<|end|>x") == [10, *(letters[letter] for letter in "x<|end|>x")]
    assert "<|end|>" in tokenizer.decode([8, 9, 8])


def test_other_processes_encode_alike(tmp_path):
    """A tokenizer is pickled on its way to a process of a build. What the file configures stays switched off there."""
    letters = {letter: i for i, letter in enumerate("<|end>ofx")}
    special = [AddedToken("<|end|>", special=True)]
    tokenizer = saved(
        tmp_path, models.BPE(vocab=letters, merges=[]),
        lambda one: (one.add_special_tokens(special), one.enable_truncation(2), one.enable_padding(length=64)),
    )  # fmt: skip
    (tmp_path / "tokenizer.json").unlink()
    module._opened.cache_clear()
    other = pickle.loads(pickle.dumps(tokenizer))
    assert ids(other, b"x<|end|>x") == ids(tokenizer, b"x<|end|>x") == [10, *(letters[one] for one in "x<|end|>x")]
    assert other.vocabulary == tokenizer.vocabulary and other.bos == 10


def test_ids_with_gaps(tmp_path):
    tokenizer = saved(tmp_path, models.WordLevel({"to": 0, "be": 7, "?": 3}, unk_token="?"))
    assert (tokenizer.bos, tokenizer.vocabulary.pad, tokenizer.vocabulary.size) == (8, 9, 10)
    assert ids(tokenizer, b"to be") == [8, 0, 7]


def test_inputs_that_are_tokenized_already_have_no_tokenizer():
    tokenizer = open_tokenizer(None, 50257)
    assert (tokenizer.bos, tokenizer.vocabulary.size, tokenizer.vocabulary.kind) == (50257, 50259, "ids")
    with pytest.raises(ValueError, match="this one is text; name a tokenizer instead"):
        tokenizer.encode_all([b"text"])


TEXT = [
    "def f(x):\n    return x + 1\n\n\nclass A:  # don't\n\tpass\n", "The end of a line.  \nThe start; 1234567 tests\r\nof\n\n\n",
    "naïve Über 東京 — ﬁne\n", "x" * 90 + "\n", "a\u0301 e\u0301\n",
]  # fmt: skip


def bpe(folder, divider, normalizer=None):
    """A BPE tokenizer, trained on TEXT."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.ByteLevel()
    if divider is not None:
        tokenizer.pre_tokenizer = divider
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return FileTokenizer(str(folder / "tokenizer.json"))


QWEN = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@pytest.mark.parametrize(
    ("divider", "normalizer", "divides"),
    [
        (lambda: pre_tokenizers.ByteLevel(add_prefix_space=False), None, True),
        (
            lambda: pre_tokenizers.Sequence(
                [pre_tokenizers.Split(_regex(QWEN), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
            ),
            normalizers.NFC(),
            True,
        ),
        (lambda: pre_tokenizers.ByteLevel(add_prefix_space=True), None, True),
        (lambda: pre_tokenizers.Metaspace(), None, True),
        (lambda: None, None, False),
    ],
)
@pytest.mark.parametrize("lines", [True, False])
def test_pieces_of_a_long_text_have_the_ids_of_the_whole(tmp_path, monkeypatch, divider, normalizer, divides, lines):
    """Pieces end where the tokenizer divides, in a text without lines at spaces; where it does not, the text is one piece."""
    monkeypatch.setattr(module, "PIECE", 500)
    monkeypatch.setattr(module, "CONTEXT", 32)
    tokenizer = bpe(tmp_path, divider(), normalizer)
    generator = random.Random(0)
    for _ in range(20):
        text = "".join(generator.choice(TEXT) for _ in range(200)).encode()
        text = text if lines else text.replace(b"\n", b"  ").replace(b"\r", b" ")
        sizes = [generator.randrange(1, 300) for _ in range(len(text))]
        chunks, at = [], 0
        while at < len(text):
            chunks.append(text[at : at + sizes.pop()])
            at += len(chunks[-1])
        pieces = list(tokenizer.pieces(chunks))
        assert b"".join(pieces) == text and (len(pieces) > 3) == divides
        [whole], parts = tokenizer.encode_all([text]), tokenizer.encode_all(pieces)
        assert [token for part in parts for token in part.tolist()] == whole.tolist()


def test_a_text_that_cannot_be_divided_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    for name, value in {"PIECE": 500, "CONTEXT": 32, "LONGEST_LINE": 3000}.items():
        monkeypatch.setattr(module, name, value)
    tokenizer = bpe(tmp_path, pre_tokenizers.ByteLevel(add_prefix_space=False))
    assert len(list(tokenizer.pieces([b"some words " * 10] * 100))) > 3
    with pytest.raises(ValueError, match="does not divide 0 MiB of the text at the end of a line or at a space"):
        list(tokenizer.pieces([b"x" * 100] * 100))


def _regex(pattern):
    from tokenizers import Regex

    return Regex(pattern)


def test_a_tokenizer_of_samples_of_bytes(tmp_path):
    samples = {"train": 40, "test": 4}
    task = WordProblems(windows_of_context=1, window=1200, operations=1)
    build(task, tmp_path / "bytes", samples, seed=3)
    file = tmp_path / "tokenizer.json"
    train_tokenizer([str(tmp_path / "bytes")], 400, file)
    build(replace(task, tokenizer=str(file)), tmp_path / "ids", samples, seed=3)
    opened = open_tokenizer(str(file))
    text = b"Question: What is the number of"
    assert len(opened.encode_all([text])[0]) < len(text) / 2, "its merges are those of the samples"
    with pytest.raises(ValueError, match="ids holds ids of a tokenizer file; a tokenizer is trained on text"):
        train_tokenizer([str(tmp_path / "ids")], 400, tmp_path / "other.json")
    assert not (tmp_path / "other.json").exists()
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "manifest.json").write_text("{}")  # of another program
    (documents / "a.txt").write_text("to be or not to be")
    assert train_tokenizer([str(documents)], 260, tmp_path / "other.json").bytes == 18
