"""Tokenizers for text: bytes, or a tokenizer.json. BOS and PAD are two ids after those of the tokenizer."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sleep_data.lines import LONGEST_LINE
from sleep_data.task import Vocabulary

TOKENIZER = "tokenizer.json"
"""Name of the copy of a tokenizer file in a folder of shards, and in the folder of a run."""
PIECE = 1 << 20
"""Bytes from which a long document is encoded in pieces."""
TRIES = 64
"""Places of each kind at which it is tried to divide a piece."""
CONTEXT = 256
"""Characters on each side of a place by which is decided whether encoding may be divided there."""


class Tokenizer(Protocol):
    """Encodes text as token ids."""

    bos: int
    """Id of the token that begins every document."""
    vocabulary: Vocabulary

    def encode_all(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """The ids [tokens] of each text, without BOS."""

    def pieces(self, text: Iterable[bytes]) -> Iterator[bytes]:
        """A text that comes in chunks, in pieces whose ids one after the other are those of the whole text."""


def encode_document(tokenizer: Tokenizer, document: bytes) -> np.ndarray:
    """int32 [tokens]: BOS and the ids of a document."""
    return np.concatenate([[tokenizer.bos], tokenizer.encode_all([document])[0]]).astype(np.int32)


def open_tokenizer(path: str | None, ids: int | None = None) -> Tokenizer:
    """The tokenizer of a file, that of bytes without one, or the vocabulary of `ids` ids of inputs that are tokenized already."""
    if ids is not None:
        return IdVocabulary(ids)
    return ByteTokenizer() if path is None else FileTokenizer(path)


class ByteTokenizer:
    """Ids 0 to 255 are bytes, 256 is BOS, 257 is PAD. Every document can be encoded and decoded exactly."""

    bos = 256

    def __init__(self) -> None:
        symbols = [chr(i) if 32 <= i < 127 else "\\n" if i == 10 else f"\\x{i:02x}" for i in range(256)]
        self.vocabulary = Vocabulary("bytes", (*symbols, "BOS", "PAD"), 258, 257)

    def encode_all(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """One id for each byte."""
        return [np.frombuffer(text, np.uint8) for text in texts]

    def pieces(self, text: Iterable[bytes]) -> Iterator[bytes]:
        """The chunks as they are."""
        yield from text


class IdVocabulary:
    """Ids 0 to `ids` - 1 of inputs that are tokenized already, followed by BOS and PAD. It encodes no text."""

    def __init__(self, ids: int) -> None:
        self.bos = ids
        self.vocabulary = Vocabulary("ids", (), ids + 2, ids + 1)

    def encode_all(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """ValueError: there is no tokenizer."""
        raise ValueError("vocab= says that all inputs are token ids, but this one is text; name a tokenizer instead")

    def pieces(self, text: Iterable[bytes]) -> Iterator[bytes]:
        """The chunks as they are."""
        yield from text


@lru_cache(maxsize=1)
def _opened(content: bytes) -> Any:
    """The library's tokenizer of a file, which only maps text to ids and back. A process that gets it with every part reads it once."""
    from tokenizers import Tokenizer as LoadedTokenizer

    tokenizer = LoadedTokenizer.from_str(content.decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


class FileTokenizer:
    """A tokenizer.json of Hugging Face's `tokenizers`, which only maps text to ids and back.

    What else the file may configure is switched off, since it was meant for another use: truncation and padding would cut and
    fill documents, its special tokens are not added, and the text of one in a document is encoded as text.
    """

    def __init__(self, path: str) -> None:
        """Read the file; ValueError if it is no tokenizer.json."""
        # Threads of the library would compete with the processes that encode.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        try:
            content = Path(path).expanduser().read_bytes()
            self._tokenizer = _opened(content)
        except ImportError:
            raise ValueError(f"tokenizer {path} needs the package tokenizers: pip install tokenizers") from None
        except Exception as error:  # the library raises plain Exception
            why = getattr(error, "strerror", None) or error
            raise ValueError(f"tokenizer {path} cannot be read as a tokenizer.json: {why}") from None
        # Ids may have gaps, so that their number is less than the largest id.
        ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
        self.bos = max(ids, default=-1) + 1
        source = hashlib.sha256(content).hexdigest()
        self.vocabulary = Vocabulary("file", (), self.bos + 2, self.bos + 1, source=source, content=content)

    def __getstate__(self) -> dict[str, Any]:
        """State for other processes, without the library's object: pickled, it forgets `encode_special_tokens`."""
        return {name: value for name, value in vars(self).items() if name != "_tokenizer"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._tokenizer = _opened(self.vocabulary.content)

    def encode_all(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """The ids of texts. Bytes that are not UTF-8 are decoded as the replacement character U+FFFD."""
        decoded = [text.decode(errors="replace") for text in texts]
        encodings = self._tokenizer.encode_batch_fast(decoded, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def pieces(self, text: Iterable[bytes]) -> Iterator[bytes]:
        """Pieces of at least PIECE bytes, which end after a line or before a space, where the tokenizer divides text by itself.

        A text without such a place is one piece: with a tokenizer that does not divide text before it merges tokens, too. ValueError if
        that piece would have more than LONGEST_LINE bytes.
        """
        held, looked_at = bytearray(), 0
        for chunk in text:
            held += chunk
            if len(held) < PIECE + looked_at:
                continue
            cut = self._last_cut(held)
            if cut:
                yield bytes(held[:cut])
                del held[:cut]
            looked_at = len(held)
            if looked_at > LONGEST_LINE:
                raise ValueError(
                    f"the tokenizer does not divide {LONGEST_LINE >> 20} MiB of the text at the end of a line or at a space, so that all of it would have "
                    "to be in memory at once; divide the document"
                )
        if held:
            yield bytes(held)

    def _last_cut(self, text: bytearray) -> int:
        """Where a text can be divided, looked for in its last PIECE bytes: after a line, else before a space; 0 if nowhere."""
        for mark, length in ((b"\n", 1), (b" ", 0)):
            end = len(text) - 4 * CONTEXT
            for _ in range(TRIES):
                end = text.rfind(mark, max(1, len(text) - PIECE), end)
                if end < 0:
                    break
                at = end + length
                if self._divides(text[max(0, at - 4 * CONTEXT) : at], text[at : at + 4 * CONTEXT]):
                    return at
        return 0

    def _divides(self, before: bytearray, after: bytearray) -> bool:
        """Whether encoding two neighbouring texts apart gives the ids of both together.

        The normalizer must treat them apart, and the pre-tokenizer divide between them: the model merges within what it divides only.
        """
        left, right = before.decode(errors="ignore")[-CONTEXT:], after.decode(errors="ignore")[:CONTEXT]
        spaces = [character.isspace() for character in left[-2:] + right[:2]]
        if sum(spaces[:3]) > 1 or sum(spaces[1:]) > 1 or not left.strip():
            return False  # a run of spaces is divided by what follows it
        normalizer, divider = self._tokenizer.normalizer, self._tokenizer.pre_tokenizer
        if divider is None:
            return False

        def parts(text: str) -> list[str]:
            text = text if normalizer is None else normalizer.normalize_str(text)
            return [part for part, _ in divider.pre_tokenize_str(text)]

        return parts(left) + parts(right) == parts(left + right)

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special tokens included, without BOS and PAD."""
        return self._tokenizer.decode([i for i in ids if i < self.bos], skip_special_tokens=False)
