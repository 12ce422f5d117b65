"""Trains a byte-level BPE tokenizer with Hugging Face's `tokenizers`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sleep_data import byte_samples
from sleep_data.documents import texts

SMALLEST = 257
"""Ids of a vocabulary, at least: the 256 bytes and one merge."""
SAMPLE = 1 << 24
"""Bytes of text on which the mean length of a token is measured."""


@dataclass(frozen=True)
class TrainedTokenizer:
    """Counts of a tokenizer and of the beginning of what it was trained on."""

    ids: int
    bytes: int
    tokens: int

    @property
    def bytes_per_token(self) -> float:
        """Mean length of a token in that text."""
        return self.bytes / self.tokens


def train_tokenizer(paths: Sequence[str], vocab: int, out: Path, field: str = "text") -> TrainedTokenizer:
    """Train a tokenizer of at most `vocab` ids on all documents under `paths`, and write it to `out`.

    A path may be a folder of samples of bytes, of which those of training are read. Text is divided as by GPT-2's tokenizer, and every
    byte can be encoded. ValueError if there is no text or `out` exists.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab < SMALLEST:
        raise ValueError(f"vocab is {vocab}; a vocabulary of bytes has at least {SMALLEST} ids")
    if out.exists():
        raise ValueError(f"{out} exists; remove it, or name another file")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    sample: list[str] = []

    def corpus() -> Iterator[str]:
        size = 0
        for text in _texts(paths, field):
            decoded = text.decode(errors="replace")
            if size < SAMPLE:
                sample.append(decoded)
                size += len(text)
            yield decoded

    tokenizer.train_from_iterator(corpus(), trainer)
    if not sample:
        raise ValueError(f"there is no text in the files under {', '.join(map(str, paths))}")
    tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch_fast(sample))
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    tokenizer.save(str(partial))
    os.replace(partial, out)
    return TrainedTokenizer(tokenizer.get_vocab_size(), sum(len(text.encode()) for text in sample), tokens)


def _texts(paths: Sequence[str], field: str) -> Iterator[bytes]:
    """The text of samples, then that of documents, each in the order of the paths."""
    built = [path for path in paths if byte_samples.is_built(Path(path))]
    for path in built:
        yield from byte_samples.texts(Path(path))
    if others := [path for path in paths if path not in built]:
        yield from texts(others, field)
