"""Tokenizers for text: bytes, or a tokenizer.json. BOS and PAD are two ids after those of the tokenizer."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np

from sleep_data.task import Vocabulary

TOKENIZER = "tokenizer.json"
"""Name of the copy of a tokenizer file in a folder of shards, and in the folder of a run."""


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
    """A tokenizer.json of Hugging Face's `tokenizers`, which only maps text to ids and back.

    What else the file may configure is switched off, since it was meant for another use: truncation and padding would cut and
    fill documents, its special tokens are not added, and the text of one in a document is encoded as text.
    """

    def __init__(self, path: str) -> None:
        """Read the file; ValueError if it is no tokenizer.json."""
        try:
            from tokenizers import Tokenizer as LoadedTokenizer
        except ImportError:
            raise ValueError(f"tokenizer {path} needs the package tokenizers: pip install tokenizers") from None
        try:
            content = Path(path).expanduser().read_bytes()
            self._tokenizer = LoadedTokenizer.from_str(content.decode())
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"tokenizer {path} cannot be read as a tokenizer.json: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        # Ids may have gaps, so that their number is less than the largest id.
        ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
        self.bos = max(ids, default=-1) + 1
        source = hashlib.sha256(content).hexdigest()
        self.vocabulary = Vocabulary("file", (), self.bos + 2, self.bos + 1, source=source, content=content)

    def encode(self, document: bytes) -> np.ndarray:
        """BOS, then the ids of the text. Bytes that are not UTF-8 are decoded as the replacement character U+FFFD."""
        ids = self._tokenizer.encode(document.decode(errors="replace"), add_special_tokens=False).ids
        return np.array([self.bos, *ids], np.int32)

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special tokens included, without BOS and PAD."""
        return self._tokenizer.decode([i for i in ids if i < self.bos], skip_special_tokens=False)
