"""Text to token ids: bytes, or a tokenizer file. BOS and PAD are two ids after those of the tokenizer."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np

from sleep_data.task import Vocabulary


class Tokenizer(Protocol):
    """Turns the bytes of a document into ids."""

    bos: int
    """Begins every document."""
    vocabulary: Vocabulary

    def encode(self, document: bytes) -> np.ndarray:
        """Ids int32 of a document, BOS first."""


class Bytes:
    """Ids 0 to 255 are bytes, 256 is BOS, 257 is PAD. Nothing is lost and nothing is unknown."""

    bos = 256

    def __init__(self) -> None:
        shown = [chr(i) if 32 <= i < 127 else "\\n" if i == 10 else f"\\x{i:02x}" for i in range(256)]
        self.vocabulary = Vocabulary("bytes", (*shown, "BOS", "PAD"), 258, 257)

    def encode(self, document: bytes) -> np.ndarray:
        """One id for each byte, after BOS."""
        return np.concatenate([[self.bos], np.frombuffer(document, np.uint8)]).astype(np.int32)


class File:
    """A tokenizer.json of Hugging Face's `tokenizers`. Its own special tokens are neither added nor treated as such."""

    def __init__(self, path: str) -> None:
        """Read the file; ValueError if it is none."""
        try:
            from tokenizers import Tokenizer as Loaded
        except ImportError:
            raise ValueError(f"tokenizer {path} needs the package tokenizers: pip install tokenizers") from None
        try:
            content = Path(path).read_bytes()
            self._loaded = Loaded.from_str(content.decode())
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"tokenizer {path} cannot be read as a tokenizer.json: {error}") from None
        size = self._loaded.get_vocab_size(with_added_tokens=True)
        self.bos = size
        self.vocabulary = Vocabulary("file", (), size + 2, size + 1, source=hashlib.sha256(content).hexdigest())

    def encode(self, document: bytes) -> np.ndarray:
        """Ids of the text, after BOS. Bytes that are not UTF-8 become the replacement character."""
        ids = self._loaded.encode(document.decode(errors="replace"), add_special_tokens=False).ids
        return np.array([self.bos, *ids], np.int32)

    def decode(self, ids: list[int]) -> str:
        """The text of ids, BOS and PAD left out."""
        return self._loaded.decode([i for i in ids if i < self.bos])
