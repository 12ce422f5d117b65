"""Prompts to tokens and tokens to text, by the tokenizer that the data's manifest names."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from typing import Any

from sleeptrain.config import UserError
from sleeptrain.data.manifest import Manifest


class Codec:
    """Encodes prompts and decodes what is generated. Raises UserError where a tokenizer file is gone or another one."""

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
        """Text after the start-of-document token; for a task with symbols, its symbols, separated by spaces or not."""
        if self._tokenizer is not None:
            # Bytes of the command line that are no UTF-8 come as surrogates, and go back to what they were.
            return self._tokenizer.encode(prompt.encode("utf-8", "surrogateescape")).tolist()
        known = {symbol: i for i, symbol in enumerate(self.symbols)}
        found = []
        for word in prompt.split():
            parts = [word] if word in known else list(word)
            wrong = next((part for part in parts if part not in known), None)
            if wrong is not None:
                raise UserError(
                    f"--prompt: {wrong!r} in {word!r} is no symbol of this task; they are {' '.join(self.symbols)}"
                )
            found += [known[part] for part in parts]
        return found

    def decode(self, tokens: Iterable[int]) -> Iterator[str]:
        """Text of each token as it comes; characters of several bytes come with their last one."""
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
                # A model may have more rows in its embedding than the task has symbols.
                yield f"{self.symbols[token] if token < len(self.symbols) else f'<{token}>'} "

    @property
    def stop(self) -> int | None:
        """The token after which a text is over: the start of another document."""
        return None if self._tokenizer is None else self._tokenizer.bos
