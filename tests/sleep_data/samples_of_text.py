"""Samples of text tasks read back as text, by the documented layout alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sleep_data.task import IGNORED, NO_GROUP, Arrays
from sleep_data.text_task import TextTask

BOS, PAD = 256, 257


@dataclass(frozen=True)
class TextSample:
    """One sample at byte level."""

    context: str
    """The text of the windows of context, without padding."""
    turns: list[tuple[str, str]]
    """Prompts and answers of the last window."""


def read_sample(task: TextTask, rows: Arrays, row: int) -> TextSample:
    """The text of a sample, after a check of padding, targets and groups."""
    tokens, targets, groups = (rows[name][row] for name in ("tokens", "targets", "groups"))
    room = task.window * task.windows_of_context
    context = tokens[:room]
    begin = int(np.flatnonzero(context == BOS)[0])
    assert (context[:begin] == PAD).all() and context[begin + 1 :].max() < 256
    last = tokens[room:]
    end = int((last != PAD).sum())
    assert (last[end:] == PAD).all() and last[:end].max() < 256
    scored = targets != IGNORED
    assert (targets[:-1][scored[:-1]] == tokens[1:][scored[:-1]]).all()
    assert (groups == np.where(scored, rows[f"label_{task.label}"][row], NO_GROUP)).all()
    answer = np.concatenate([[False], scored[:-1]])[room:]  # where a token of an answer stands
    turns, at = list[tuple[str, str]](), 0
    for start, stop in np.flatnonzero(np.diff(np.concatenate([[0], answer, [0]]))).reshape(-1, 2):
        turns.append((text_of(last[at:start]), text_of(last[start:stop])))
        at = stop
    assert at == end and not scored[:room].any()
    for _, answered in turns:
        assert answered[0] == " " and answered[-1] == "\n"
    return TextSample(text_of(context[begin + 1 :]), [(prompt, answered[1:-1]) for prompt, answered in turns])


def text_of(tokens: np.ndarray) -> str:
    """The text of byte tokens."""
    return tokens.astype(np.uint8).tobytes().decode()


def sentences(context: str) -> list[str]:
    """The sentences of a text."""
    return [f"{part.strip()}." for part in context.split(".") if part.strip()]
