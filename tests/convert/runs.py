"""Run folders of small models with given weights, made without a training and without shards."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from sleep_data.manifest import FORMAT, digest
from sleep_data.task import Vocabulary
from sleep_data.tokenize import ByteTokenizer, FileTokenizer
from sleeptrain import checkpoint
from sleeptrain.config import Resolved
from sleeptrain.data.config import Data, Source
from sleeptrain.model.language import LanguageModel
from sleeptrain.program import Sleep
from sleeptrain.recipe.recipe import Recipe
from sleeptrain.run.folder import write_run_folder
from sleeptrain.train.config import Train

BYTES = ByteTokenizer().vocabulary
SYMBOLS = Vocabulary("symbols", ("0", "1", "?", "PAD"), 4, 3)
TEXTS = ["the fast weights remember", "what was evicted: Grüße, 日本!", "a <|bos|> b  \n\t<|pad|>\n"]


def train_tokenizer(path: Path) -> Vocabulary:
    """Train a byte-level BPE with a special token of its own, and return its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.save(str(path))
    return FileTokenizer(str(path)).vocabulary


def manifest(vocabulary: Vocabulary, window: int, tokenizer: Path | None = None) -> dict[str, Any]:
    """The manifest of a token stream with this vocabulary."""
    token = {"kind": vocabulary.kind, "vocabulary": list(vocabulary.symbols), "size": vocabulary.size, "hash": vocabulary.hash}  # fmt: skip
    body = {
        "format": FORMAT, "task": "text", "version": 1, "parameters": {"tokenizer": str(tokenizer)}, "seed": 0, "inputs": None,
        "samples": {}, "tokenizer": token, "vocab": vocabulary.size, "pad": vocabulary.pad, "query": None, "block": 8 * window,
        "length": None, "corpus": None, "windows": [], "columns": {}, "label": None, "labels": {}, "baselines": {},
        "splits": {"train": {"tokens": 800, "targets": 800, "samples": 8, "documents": 3}},
    }  # fmt: skip
    return body | {"hash": digest(body)}


def write_run(
    folder: Path, model: LanguageModel, sleep: Sleep, vocabulary: Vocabulary = BYTES, tokenizer: Path | None = None
) -> Path:
    """Write a run with the model's weights as the checkpoint of step 7."""
    config = dataclasses.replace(model.config, deltanet=dataclasses.replace(model.config.deltanet, horizon=400))
    recipe = Recipe(config, sleep, Data([Source("runs/data/text")]), train=Train(steps=10))
    file = tokenizer or folder / "tokenizer.json"
    write_run_folder(folder, Resolved(recipe, {}).to_yaml(), manifest(vocabulary, sleep.window, tokenizer), file)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    checkpoint.write_weights(folder / "checkpoints", 7, shapes, weights.__getitem__)
    return folder
