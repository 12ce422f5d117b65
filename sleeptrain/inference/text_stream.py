"""Text of generated tokens, one token at a time: characters are complete, and text ends before a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from sleep_data.tokenize import FileTokenizer

MOST_HELD = 32
"""Tokens of a file's tokenizer that wait for the rest of a character, and that are decoded with those after them."""


class TextStream(Protocol):
    """Turns tokens into text."""

    def push(self, token: int) -> str:
        """The text that a token completes; an unfinished character waits for its rest."""

    def end(self) -> str:
        """The rest: bytes that never became a character are U+FFFD."""


class ByteStream:
    """Tokens are bytes; others have no text."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(bytes([token])) if token < 256 else ""

    def end(self) -> str:
        return self._decoder.decode(b"", final=True)


class SymbolStream:
    """Tokens are the symbols of a task, with a space after each."""

    def __init__(self, symbols: Sequence[str]) -> None:
        self._symbols = symbols

    def push(self, token: int) -> str:
        # The embedding of a model may have more rows than the task has symbols.
        return f"{self._symbols[token] if token < len(self._symbols) else f'<{token}>'} "

    def end(self) -> str:
        return ""


class FileStream:
    """Tokens are those of a tokenizer file, after those of a prompt.

    A tokenizer may drop a space at the start of a text, and needs several tokens for some characters. So the tokens since the
    last complete text are decoded together with those of the complete text before it, and only the difference is returned.
    """

    def __init__(self, tokenizer: FileTokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids, self._held = list(prompt[-MOST_HELD:]), ""
        self._shown = len(self._ids)

    def push(self, token: int) -> str:
        self._ids.append(token)
        before = self._tokenizer.decode(self._ids[: self._shown])
        added = self._tokenizer.decode(self._ids)[len(before) :]
        if (not added or added.endswith("\ufffd")) and len(self._ids) - self._shown < MOST_HELD:
            self._held = added
            return ""
        self._ids, self._shown, self._held = self._ids[self._shown :], len(self._ids) - self._shown, ""
        return added

    def end(self) -> str:
        return self._held


class StopStrings:
    """Passes text on up to the first of several stop strings, which may arrive in parts and is not passed on.

    The stop string that is complete first counts, whatever the parts are, and of those that end together the longest.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises ValueError for an empty stop string, which every text would contain."""
        if not all(stops):
            raise ValueError("a stop string is empty; every text contains it")
        self._stops = tuple(stops)
        self._held = ""
        self.found = False
        """Whether a stop string has arrived; what is pushed later is dropped."""

    def push(self, text: str) -> str:
        """The text that is certain to be before any stop string."""
        if self.found:
            return ""
        self._held += text
        ends = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if ends:
            self.found = True
            return self._held[: min(ends)[1]]
        keep = max((self._begun(stop) for stop in self._stops), default=0)
        passed, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return passed

    def end(self) -> str:
        """The text that was held back because a stop string might have begun in it."""
        return "" if self.found else self._held

    def _begun(self, stop: str) -> int:
        """The length of the longest end of the held text with which a stop string begins."""
        lengths = range(min(len(stop) - 1, len(self._held)), 0, -1)
        return next((n for n in lengths if self._held.endswith(stop[:n])), 0)
