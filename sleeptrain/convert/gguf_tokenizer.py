"""The tokenizer of a GGUF file: the keys `tokenizer.*` from which llama.cpp makes the ids of the training data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sleep_data.tokenize import TOKENIZER
from sleeptrain.convert.tokenizer_files import token_ids, tokenizer_files
from sleeptrain.data.manifest import Manifest
from sleeptrain.errors import UserError

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Types of tokens in llama.cpp."""
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?"
PRE_TOKENIZERS = {
    None: "gpt-2",
    QWEN + r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
    QWEN + r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",
    QWEN + r"[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen35",
}
"""llama.cpp's names of the expressions that split a text before pairs are merged; None: that of GPT-2, which ByteLevel has."""
NO_MERGE = "<|bos|> <|bos|>"
"""llama.cpp demands merges. A text begins as single characters, so that this one never happens."""


def tokenizer_keys(manifest: Manifest, original: Path, vocab: int) -> dict[str, Any]:
    """The keys and values of a tokenizer with `vocab` ids. Data of symbols or ids has none: a program gives the model ids.

    `original` is the tokenizer.json of the data, where it has one. Raises UserError where llama.cpp has no such tokenizer.
    """
    kind = manifest.tokenizer["kind"]
    if kind in ("ids", "symbols"):
        return {"tokenizer.ggml.model": "none", "qwen35.vocab_size": vocab}
    body = json.loads(tokenizer_files(manifest, original)[TOKENIZER])
    # A tokenizer of bytes has no merges, so that it gives bytes whatever the expression is; qwen2's text keeps its spaces.
    pre = "qwen2" if kind == "bytes" else _pre_tokenizer(body, original)
    tokens, types = _tokens(body, vocab)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in body["model"]["merges"]]
    ids = token_ids(manifest)
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types, "tokenizer.ggml.merges": merges or [NO_MERGE],
        "tokenizer.ggml.bos_token_id": ids["bos_token_id"], "tokenizer.ggml.eos_token_id": ids["eos_token_id"],
        "tokenizer.ggml.padding_token_id": ids["pad_token_id"], "tokenizer.ggml.add_bos_token": True,
    }  # fmt: skip


def _tokens(body: dict[str, Any], vocab: int) -> tuple[list[str], list[int]]:
    """Text and type of every id; ids without a token are unused ones."""
    text = {i: token for token, i in body["model"]["vocab"].items()}
    added = {token["id"]: token for token in body["added_tokens"]}
    text |= {i: token["content"] for i, token in added.items()}
    types = {i: CONTROL if token["special"] else USER_DEFINED for i, token in added.items()}
    tokens = [text.get(i, f"[PAD{i}]") for i in range(vocab)]
    return tokens, [types.get(i, NORMAL if i in text else UNUSED) for i in range(vocab)]


def _pre_tokenizer(body: dict[str, Any], original: Path) -> str:
    """llama.cpp's name of the pre-tokenizer. Raises UserError, which names what it has not."""
    model, steps = body["model"], body["pre_tokenizer"] or {}
    refusal = f"tokenizer {original} cannot be exported to GGUF: llama.cpp has"
    if model["type"] != "BPE" or model.get("byte_fallback"):
        raise UserError(f"{refusal} no byte-level tokenizer of type {model['type']}; export with --to hf")
    if (normalizer := body.get("normalizer")) and normalizer["type"] != "NFC":  # as for all models with this one
        raise UserError(f"{refusal} no normalizer {normalizer['type']}; export with --to hf")
    steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    splits = [step["pattern"].get("Regex") for step in steps if step.get("type") == "Split"]
    levels = [step for step in steps if step.get("type") == "ByteLevel"]
    plain = len(levels) == 1 and not levels[0]["add_prefix_space"] and levels[0].get("use_regex", True) != bool(splits)
    expression = splits[0] if splits else None
    name = PRE_TOKENIZERS.get(expression)
    if len(splits) + len(levels) != len(steps) or len(splits) > 1 or not plain or name is None:
        shown = expression or ", ".join(step.get("type", "none") for step in steps)
        raise UserError(
            f"{refusal} no pre-tokenizer {shown!r}; it has those of {', '.join(PRE_TOKENIZERS.values())}. Export with --to hf"
        )
    if bool(model.get("ignore_merges")) != (name == "llama-bpe"):
        raise UserError(f"{refusal} ignore_merges with its pre-tokenizer llama-bpe only; export with --to hf")
    return name
