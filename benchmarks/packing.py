"""Training speed in real tokens of rows that hold several documents, relative to rows of one document each, padded at their end.

Documents are random bytes of one length. A step is forward and backward of the checkpointed executor on one thread with the model
of `text-small`. Batches of both kinds alternate, until all rows have been read.
"""

from __future__ import annotations

import dataclasses
import time
from functools import partial
from itertools import cycle

import numpy as np
import torch
from figures import Figure, interleaved, part

from sleep_data.stream import blocks_of, cut_row
from sleeptrain.data.batch import IGNORED, Batch, collate, stack
from sleeptrain.execute.autograd import CheckpointedExecutor
from sleeptrain.model.init import initialise
from sleeptrain.model.language import LanguageModel
from sleeptrain.program import Window, compile
from sleeptrain.recipe import load_recipe

BOS, PAD, VOCAB = 256, 257, 258
WINDOW, WINDOWS = 64, 4
ROW = WINDOW * WINDOWS
RECIPE = load_recipe("text-small", ["train.precision=fp32"]).value
LAYOUT = [Window(i * WINDOW, (i + 1) * WINDOW, True) for i in range(WINDOWS)]
PROGRAM = compile(RECIPE.sleep, LAYOUT, len(RECIPE.model.pattern))
LENGTHS = {50: 4.0, 400: 1.0, 4_000: 1.0, 40_000: 1.0}
"""Bytes of a document, and the least ratio of speeds."""


def documents(length: int, tokens: int) -> list[np.ndarray]:
    """Documents of BOS and `length` random bytes, `tokens` tokens in all or a little more."""
    random = np.random.default_rng(0)
    count = -(-tokens // (length + 1))
    return [np.concatenate([[BOS], random.integers(0, 256, length)]).astype(np.int32) for _ in range(count)]


def packed(texts: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Rows of the stream of all documents."""
    return [
        cut_row(block, at, ROW, PAD)
        for block in blocks_of(texts, 64 * ROW)
        for at in range(0, len(block["tokens"]), ROW)
    ]


def alone(texts: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Rows of one document each, or a part of it; padding fills the last row of a document."""
    rows = [row for text in texts for row in packed([text]) if (row["targets"] != IGNORED).any()]
    for row in rows:
        del row["starts"]
    return rows


def batches_of(rows: list[dict[str, np.ndarray]], size: int) -> list[Batch]:
    """All rows in batches of one size; each takes rows from all documents, and the last ones may take some that others have."""
    count = -(-len(rows) // size)
    order = [rows[i % len(rows)] | {"row": i} for first in range(count) for i in range(first, count * size, count)]
    return [collate(stack(order[i : i + size])) for i in range(0, len(order), size)]


def new_model() -> LanguageModel:
    """The model of `text-small` with the vocabulary of bytes."""
    model = LanguageModel(dataclasses.replace(RECIPE.model, vocab=VOCAB), seed=None)
    initialise(model, 0, 4 * ROW)
    return model


def step(model: LanguageModel, batch: Batch) -> float:
    """CPU seconds of forward and backward of a batch."""
    micro_batch = batch.micro_batch(model.zero_state(RECIPE.sleep, batch.rows), LAYOUT, PAD)
    start = time.process_time()
    (output,) = CheckpointedExecutor(model, [micro_batch], PROGRAM, RECIPE.sleep, "block").run()
    output.nll.sum().backward()
    model.zero_grad()
    return time.process_time() - start


def speed_ratio(length: int, size: int, rounds: int) -> tuple[float, dict[str, object]]:
    """Real tokens per second of packed rows over those of rows of one document, and the details.

    Every batch of both kinds is run, since a step costs more where documents begin or padding is masked; there are `rounds` of one
    batch of each kind at least.
    """
    texts = documents(length, max(40 * ROW, 2 * length))
    kinds = {name: batches_of(rows, size) for name, rows in (("packed", packed(texts)), ("one document", alone(texts)))}
    real = {name: [int((batch.tokens != PAD).sum()) for batch in batches] for name, batches in kinds.items()}
    model = new_model()
    steps = {name: cycle([partial(step, model, batch) for batch in batches]) for name, batches in kinds.items()}
    runs = {name: lambda of_kind=of_kind: next(of_kind)() for name, of_kind in steps.items()}
    interleaved(runs, 1)  # warm-up
    rounds = max(rounds, *map(len, kinds.values()))
    times = interleaved(runs, rounds)
    seconds = {name: float(np.mean(series)) for name, series in times.items()}
    rate = {name: float(np.mean(real[name])) / seconds[name] for name in kinds}
    share = {name: float(np.mean(real[name])) / (size * ROW) for name in kinds}
    detail = {
        "real tokens of a row": share,
        "seconds of a step": seconds,
        "rounds": rounds,
        "rows": size,
        "tokens of a row": ROW,
    }
    return rate["packed"] / rate["one document"], detail


def figures(quick: bool) -> list[Figure]:
    """One figure for each length of document."""
    torch.set_num_threads(1)
    results = []
    for length, least in list(LENGTHS.items())[: 1 if quick else None]:
        ratio, detail = speed_ratio(length, 2 if quick else 16, 2 if quick else 9)
        name = f"real tokens per second, packed over one document a row: documents of {length:,} bytes"
        results.append(Figure(name, ratio, "x", at_least=least, detail=detail))
    return results


if __name__ == "__main__":
    part(figures, __doc__, ["torch"])
