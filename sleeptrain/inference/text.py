"""Conversion of prompts to tokens and of tokens to text with the tokenizer of the data's manifest."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sleep_data.tokenize import TOKENIZER, ByteTokenizer, FileTokenizer, encode_document
from sleeptrain.data.manifest import Manifest
from sleeptrain.errors import UserError


class Codec:
    """Encodes prompts and decodes generated tokens.

    A tokenizer file is that of `folder`, the run, which has a copy; without one that of the path that the data was built
    with. Raises UserError where it is missing or differs from the one that built the data.
    """

    def __init__(self, manifest: Manifest, folder: Path | None = None) -> None:
        self.kind: str = manifest.tokenizer["kind"]
        self.symbols: list[str] = manifest.tokenizer["vocabulary"]
        self.pad = manifest.pad
        self._tokenizer: Any = self._open(manifest, folder) if self.kind in ("bytes", "file") else None

    def _open(self, manifest: Manifest, folder: Path | None) -> Any:
        if self.kind == "bytes":
            return ByteTokenizer()
        copy = folder / TOKENIZER if folder else None
        path = str(copy) if copy and copy.exists() else manifest.body["parameters"]["tokenizer"]
        try:
            loaded = FileTokenizer(path)
        except ValueError as error:
            where = f"; put it into {folder}, as {TOKENIZER}" if folder else ""
            raise UserError(f"{error}{where}") from None
        if loaded.vocabulary.hash != manifest.tokenizer["hash"]:
            raise UserError(f"tokenizer {path} was changed since the data was built; put the old file back")
        return loaded

    def encode(self, prompt: str) -> list[int]:
        """The tokens of a prompt.

        For text: the start-of-document token, then the text. For inputs that were tokenized already: that token, then ids between
        spaces. For a task with symbols: its symbols, with or without spaces between them. Raises UserError for an unknown symbol.
        """
        if self._tokenizer is not None:
            # Python decodes bytes of the command line that are not UTF-8 to surrogates; this restores the bytes.
            return encode_document(self._tokenizer, prompt.encode("utf-8", "surrogateescape")).tolist()
        if self.kind == "ids":
            return self._ids(prompt)
        known = {symbol: i for i, symbol in enumerate(self.symbols)}
        ids = []
        for word in prompt.split():
            parts = [word] if word in known else list(word)
            unknown = next((part for part in parts if part not in known), None)
            if unknown is not None:
                raise UserError(
                    f"--prompt: {unknown!r} in {word!r} is not a symbol of this task; its symbols are {' '.join(self.symbols)}"
                )
            ids += [known[part] for part in parts]
        return ids

    def _ids(self, prompt: str) -> list[int]:
        """BOS and the ids that a prompt names."""
        bos = self.pad - 1
        for word in prompt.split():
            if not word.isdecimal() or int(word) >= bos:
                raise UserError(
                    f"--prompt: {word!r} is no token id from 0 to {bos - 1}; the data was tokenized already, without a tokenizer file"
                )
        return [bos, *map(int, prompt.split())]

    def decode(self, tokens: Iterable[int], prompt: Sequence[int] = ()) -> Iterator[str]:
        """The text of each token as it arrives after the tokens of `prompt`; an unfinished character waits for its rest.

        Bytes that never become a character are returned as U+FFFD.
        """
        if self.kind == "bytes":
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            for token in tokens:
                yield decoder.decode(bytes([token])) if token < 256 else ""
            yield decoder.decode(b"", final=True)
        elif self.kind == "file":
            yield from _decode_with_file(self._tokenizer, tokens, prompt)
        else:
            for token in tokens:
                # The embedding of a model may have more rows than the task has symbols.
                yield f"{self.symbols[token] if token < len(self.symbols) else f'<{token}>'} "

    @property
    def stop(self) -> int | None:
        """The token that ends a text: the start-of-document token. None for a task with symbols."""
        return None if self._tokenizer is None else self._tokenizer.bos


def _decode_with_file(tokenizer: FileTokenizer, tokens: Iterable[int], prompt: Sequence[int]) -> Iterator[str]:
    """The text that each token adds to what precedes it.

    A tokenizer may drop a space at the start of a text, and needs several tokens for some characters. So the tokens since the
    last complete text are decoded together with those of the complete text before it, and only the difference is returned.
    """
    ids, start, shown = list(prompt), 0, len(prompt)
    added = ""
    for token in tokens:
        ids.append(token)
        added = tokenizer.decode(ids[start:])[len(tokenizer.decode(ids[start:shown])) :]
        if added and not added.endswith("\ufffd"):
            yield added
            added, start, shown = "", shown, len(ids)
    if added:
        yield added
