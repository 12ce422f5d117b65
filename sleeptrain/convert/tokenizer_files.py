"""The tokenizer of an exported model: tokenizer.json and tokenizer_config.json that give the ids of the training data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sleep_data.tokenize import TOKENIZER
from sleeptrain.data.manifest import Manifest
from sleeptrain.errors import UserError

BOS, PAD = "<|bos|>", "<|pad|>"
"""The tokens that the data pipeline adds after those of a tokenizer: the start of a document, which also ends the one before, and padding."""


def token_ids(manifest: Manifest) -> dict[str, int | None]:
    """The special ids of a model's configuration. The start of the next document ends a text; tasks with symbols have no end."""
    bos = None if manifest.tokenizer["kind"] == "symbols" else manifest.pad - 1
    return {"bos_token_id": bos, "eos_token_id": bos, "pad_token_id": manifest.pad}


def tokenizer_files(manifest: Manifest, original: Path) -> dict[str, str]:
    """The files by name; none where the data was tokenized already, without a tokenizer.

    `original` is the tokenizer.json of the data, where it has one. Raises UserError where it cannot be read, or has gaps between
    its ids, so that the ids of BOS and PAD cannot be given to new tokens.
    """
    kind = manifest.tokenizer["kind"]
    if kind == "ids":
        return {}
    if kind == "symbols":
        symbols = manifest.tokenizer["vocabulary"]
        body, special = _symbols(symbols), {"pad_token": symbols[manifest.pad]} if manifest.pad < len(symbols) else {}
    else:
        body = _bytes() if kind == "bytes" else _read(original)
        _add_special(body, manifest.pad - 1)
        special = {"bos_token": BOS, "eos_token": BOS, "pad_token": PAD}
        _check(body, manifest.pad, original)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **special,
        # The text of a special token in a document is text, as in training.
        "split_special_tokens": True,
    }  # fmt: skip
    return {TOKENIZER: json.dumps(body, ensure_ascii=False), "tokenizer_config.json": json.dumps(config, indent=1)}


def byte_characters() -> list[str]:
    """The printable character that stands for each byte in byte-level tokenizers of Hugging Face: itself, or one from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _bytes() -> dict[str, Any]:
    """A tokenizer whose ids 0 to 255 are bytes."""
    model = {"type": "BPE", "vocab": {c: byte for byte, c in enumerate(byte_characters())}, "merges": []}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return _tokenizer(model, pre_tokenizer=level, decoder=level)


def _symbols(symbols: list[str]) -> dict[str, Any]:
    """A tokenizer of words between spaces, the symbols of a task. An unknown word is an error."""
    model = {"type": "WordLevel", "vocab": {symbol: i for i, symbol in enumerate(symbols)}, "unk_token": "<|unknown|>"}
    return _tokenizer(model, pre_tokenizer={"type": "WhitespaceSplit"}, decoder=None)


def _tokenizer(model: dict[str, Any], **parts: Any) -> dict[str, Any]:
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor"))
    return {"version": "1.0", **empty, "added_tokens": [], **parts, "model": model}


def _read(path: Path) -> dict[str, Any]:
    try:
        body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"tokenizer {path} cannot be read ({error}); put the file of the data back") from None
    return body


def _add_special(body: dict[str, Any], bos: int) -> None:
    """Give BOS and PAD their ids, and put BOS before every text, as the data pipeline does."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    body["added_tokens"] = [*body.get("added_tokens", []), *({"id": bos + i, "content": c, **flags} for i, c in enumerate((BOS, PAD)))]  # fmt: skip
    start, text = {"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 0}}
    body["post_processor"] = {
        "type": "TemplateProcessing", "single": [start, text], "pair": [start, text, second],
        "special_tokens": {BOS: {"id": BOS, "ids": [bos], "tokens": [BOS]}},
    }  # fmt: skip
    body["truncation"] = body["padding"] = None


def _check(body: dict[str, Any], pad: int, original: Path) -> None:
    """Raise UserError unless a program that loads the tokenizer gives BOS and PAD their ids."""
    from tokenizers import Tokenizer

    try:
        loaded = Tokenizer.from_str(json.dumps(body))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"tokenizer {original} cannot be read as a tokenizer.json: {error}") from None
    if (loaded.token_to_id(BOS), loaded.token_to_id(PAD)) != (pad - 1, pad):
        raise UserError(
            f"tokenizer {original}: its ids have gaps, so that no tokenizer.json can give the ids {pad - 1} and {pad} of the data to "
            "the start of a document and to padding; train with a tokenizer without gaps"
        )
