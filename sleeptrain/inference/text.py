"""Conversion of prompts to tokens and of tokens to text with the tokenizer of the data's manifest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sleep_data.tokenize import TOKENIZER, ByteTokenizer, FileTokenizer, encode_document
from sleeptrain.data.manifest import Manifest
from sleeptrain.errors import UserError
from sleeptrain.inference.text_stream import ByteStream, FileStream, SymbolStream, TextStream


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

    def encode(self, prompt: str, *, continued: bool = False) -> list[int]:
        """The tokens of a prompt, or with `continued` of what follows in the same text, without the start-of-document token.

        For text: the start-of-document token, then the text. For inputs that were tokenized already: that token, then ids between
        spaces. For a task with symbols: its symbols, with or without spaces between them. Raises UserError for an unknown symbol.
        """
        if self._tokenizer is not None:
            # Python decodes bytes of the command line that are not UTF-8 to surrogates; this restores the bytes.
            return encode_document(self._tokenizer, prompt.encode("utf-8", "surrogateescape")).tolist()[
                int(continued) :
            ]
        if self.kind == "ids":
            return self._ids(prompt)[int(continued) :]
        known = {symbol: i for i, symbol in enumerate(self.symbols)}
        ids = []
        for word in prompt.split():
            parts = [word] if word in known else list(word)
            unknown = next((part for part in parts if part not in known), None)
            if unknown is not None:
                raise UserError(
                    f"{unknown!r} in {word!r} is not a symbol of this task; its symbols are {' '.join(self.symbols)}"
                )
            ids += [known[part] for part in parts]
        return ids

    def _ids(self, prompt: str) -> list[int]:
        """BOS and the ids that a prompt names."""
        bos = self.pad - 1
        for word in prompt.split():
            if not word.isdecimal() or int(word) >= bos:
                raise UserError(
                    f"{word!r} is no token id from 0 to {bos - 1}; the data was tokenized already, without a tokenizer file"
                )
        return [bos, *map(int, prompt.split())]

    def stream(self, prompt: Sequence[int] = ()) -> TextStream:
        """What turns the tokens after those of `prompt` into text, one at a time."""
        if self.kind == "bytes":
            return ByteStream()
        return FileStream(self._tokenizer, prompt) if self.kind == "file" else SymbolStream(self.symbols)

    def decode(self, tokens: Iterable[int], prompt: Sequence[int] = ()) -> Iterator[str]:
        """The text of each token as it arrives after the tokens of `prompt`; an unfinished character waits for its rest.

        Bytes that never become a character are returned as U+FFFD.
        """
        stream = self.stream(prompt)
        for token in tokens:
            yield stream.push(token)
        yield stream.end()

    @property
    def stop(self) -> int | None:
        """The token that ends a text: the start-of-document token. None for a task with symbols."""
        return None if self._tokenizer is None else self._tokenizer.bos
