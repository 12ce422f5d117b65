"""Training speed in real tokens of rows that hold several documents, relative to rows of one document each, padded at their end.

Documents are random bytes of one length. A step is forward and backward of the checkpointed executor on one thread with the model
of `text-small`. Rows of both kinds alternate; the rows of a step are spread evenly over all rows of the documents.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from figures import Figure, interleaved, part

from sleep_data.stream import blocks_of, cut_row
from sleeptrain.data.batch import IGNORED, Batch, collate, stack
from sleeptrain.execute.autograd import CheckpointedExecutor
from sleeptrain.model.init import initialise
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.program import Window, compile
from sleeptrain.recipe import load_recipe

BOS, PAD, VOCAB = 256, 257, 258
WINDOW, WINDOWS = 64, 4
ROW = WINDOW * WINDOWS
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


def batch_of(rows: list[dict[str, np.ndarray]], count: int) -> Batch:
    """`count` of the rows, spread evenly."""
    chosen = [rows[i * len(rows) // count] | {"row": i} for i in range(count)]
    return collate(stack(chosen))


def stepper(batch: Batch) -> Callable[[], float]:
    """A function that runs forward and backward of a batch and returns its CPU seconds."""
    recipe = load_recipe("text-small", ["train.precision=fp32"]).value
    model = LanguageModel(dataclasses.replace(recipe.model, vocab=VOCAB), seed=None)
    initialise(model, 0, 4 * ROW)
    windows = [Window(i * WINDOW, (i + 1) * WINDOW, True) for i in range(WINDOWS)]
    program = compile(recipe.sleep, windows, len(recipe.model.pattern))
    valid, starts = batch.real(PAD), batch.starts_by_window(windows)

    def step() -> float:
        state = model.zero_state(recipe.sleep, batch.rows)
        micro_batch = MicroBatch(batch.tokens, batch.targets, state, valid, starts=starts)
        start = time.process_time()
        (output,) = CheckpointedExecutor(model, [micro_batch], program, recipe.sleep, "block").run()
        output.nll.sum().backward()
        model.zero_grad()
        return time.process_time() - start

    return step


def speed_ratio(length: int, rows: int, rounds: int) -> tuple[float, dict[str, object]]:
    """Real tokens per second of packed rows over those of rows of one document, and the details."""
    texts = documents(length, max(40 * ROW, 2 * length))
    kinds = {"packed": packed(texts), "one document": alone(texts)}
    real = {name: float(np.mean([(row["tokens"] != PAD).mean() for row in all_])) for name, all_ in kinds.items()}
    steps = {name: partial(stepper(batch_of(all_, rows))) for name, all_ in kinds.items()}
    interleaved(steps, 1)  # warm-up
    times = interleaved(steps, rounds)
    pairs = zip(times["one document"], times["packed"], strict=True)
    ratio = statistics.median(one / other for one, other in pairs) * real["packed"] / real["one document"]
    seconds = {name: statistics.median(series) for name, series in times.items()}
    return ratio, {"real tokens of a row": real, "seconds of a step": seconds, "rows": rows, "tokens of a row": ROW}


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
