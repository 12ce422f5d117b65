"""Conversion of prompts to tokens and of tokens to text with the tokenizer of the data's manifest."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from typing import Any

from sleeptrain.data.manifest import Manifest
from sleeptrain.errors import UserError


class Codec:
    """Encodes prompts and decodes generated tokens.

    Raises UserError where the tokenizer file is missing or differs from the one that built the data.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.kind: str = manifest.tokenizer["kind"]
        self.symbols: list[str] = manifest.tokenizer["vocabulary"]
        self.pad = manifest.pad
        self._tokenizer: Any = self._open(manifest) if self.kind in ("bytes", "file") else None

    def _open(self, manifest: Manifest) -> Any:
        from sleep_data.tokenize import ByteTokenizer, FileTokenizer

        if self.kind == "bytes":
            return ByteTokenizer()
        path = manifest.body["parameters"]["tokenizer"]
        try:
            loaded = FileTokenizer(path)
        except ValueError as error:
            raise UserError(str(error)) from None
        if loaded.vocabulary.hash != manifest.tokenizer["hash"]:
            raise UserError(f"tokenizer {path} was changed since the data was built; put the old file back")
        return loaded

    def encode(self, prompt: str) -> list[int]:
        """The tokens of a prompt.

        For text: the start-of-document token, then the text. For a task with symbols: its symbols, with or without spaces
        between them. Raises UserError for an unknown symbol.
        """
        if self._tokenizer is not None:
            # Python decodes bytes of the command line that are not UTF-8 to surrogates; this restores the bytes.
            return self._tokenizer.encode(prompt.encode("utf-8", "surrogateescape")).tolist()
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

    def decode(self, tokens: Iterable[int]) -> Iterator[str]:
        """The text of each token as it arrives; a character of several bytes is returned with its last byte."""
        if self.kind == "bytes":
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            for token in tokens:
                yield decoder.decode(bytes([token])) if token < 256 else ""
            yield decoder.decode(b"", final=True)
        elif self.kind == "file":
            ids: list[int] = []
            shown = ""
            for token in tokens:
                ids.append(token)
                text = self._tokenizer.decode(ids)
                if not text.endswith("\ufffd"):
                    yield text[len(shown) :]
                    shown = text
        else:
            for token in tokens:
                # The embedding of a model may have more rows than the task has symbols.
                yield f"{self.symbols[token] if token < len(self.symbols) else f'<{token}>'} "

    @property
    def stop(self) -> int | None:
        """The token that ends a text: the start-of-document token. None for a task with symbols."""
        return None if self._tokenizer is None else self._tokenizer.bos
