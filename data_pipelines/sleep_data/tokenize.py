"""Tokenizers for text: bytes, or a tokenizer.json. BOS and PAD are two ids after those of the tokenizer."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np

from sleep_data.task import Vocabulary


class Tokenizer(Protocol):
    """Encodes the bytes of a document as token ids."""

    bos: int
    """Id of the token that begins every document."""
    vocabulary: Vocabulary

    def encode(self, document: bytes) -> np.ndarray:
        """int32 [tokens]: BOS and the ids of a document."""


class ByteTokenizer:
    """Ids 0 to 255 are bytes, 256 is BOS, 257 is PAD. Every document can be encoded and decoded exactly."""

    bos = 256

    def __init__(self) -> None:
        symbols = [chr(i) if 32 <= i < 127 else "\\n" if i == 10 else f"\\x{i:02x}" for i in range(256)]
        self.vocabulary = Vocabulary("bytes", (*symbols, "BOS", "PAD"), 258, 257)

    def encode(self, document: bytes) -> np.ndarray:
        """BOS, then one id for each byte."""
        return np.concatenate([[self.bos], np.frombuffer(document, np.uint8)]).astype(np.int32)


class FileTokenizer:
    """A tokenizer.json of Hugging Face's `tokenizers`. Its own special tokens are not added; in text they are plain ids."""

    def __init__(self, path: str) -> None:
        """Read the file; ValueError if it is no tokenizer.json."""
        try:
            from tokenizers import Tokenizer as LoadedTokenizer
        except ImportError:
            raise ValueError(f"tokenizer {path} needs the package tokenizers: pip install tokenizers") from None
        try:
            content = Path(path).read_bytes()
            self._tokenizer = LoadedTokenizer.from_str(content.decode())
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"tokenizer {path} cannot be read as a tokenizer.json: {error}") from None
        size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.bos = size
        self.vocabulary = Vocabulary("file", (), size + 2, size + 1, source=hashlib.sha256(content).hexdigest())

    def encode(self, document: bytes) -> np.ndarray:
        """BOS, then the ids of the text. Bytes that are not UTF-8 are decoded as the replacement character U+FFFD."""
        ids = self._tokenizer.encode(document.decode(errors="replace"), add_special_tokens=False).ids
        return np.array([self.bos, *ids], np.int32)

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, without BOS and PAD."""
        return self._tokenizer.decode([i for i in ids if i < self.bos])
