"""Stop strings across the borders of tokens, and the texts of rows that end for different reasons."""

from __future__ import annotations

import random

import pytest
import torch

from sleeptrain.inference import SleepSession
from sleeptrain.inference.continuation import Continuation, padded, write_token
from sleeptrain.inference.sampling import Sampling
from sleeptrain.inference.text_stream import ByteStream, StopStrings
from sleeptrain.program import Loop, Sleep
from tests.model import toy


def shown(text: str, stops: list[str], cuts: list[int]) -> tuple[str, bool]:
    stream, pieces = StopStrings(stops), []
    for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
        pieces.append(stream.push(text[start:stop]))
    return "".join([*pieces, stream.end()]), stream.found


def expected(text: str, stops: list[str]) -> tuple[str, bool]:
    """By a look at every beginning of the text."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


def test_stop_strings_do_not_depend_on_the_borders_of_tokens() -> None:
    draw = random.Random(0)
    for _ in range(2000):
        text = "".join(draw.choices("ab\n", k=draw.randint(0, 12)))
        stops = ["".join(draw.choices("ab\n", k=draw.randint(1, 4))) for _ in range(draw.randint(0, 3))]
        cuts = sorted(draw.choices(range(len(text) + 1), k=draw.randint(0, 5)))
        assert shown(text, stops, cuts) == expected(text, stops), (text, stops, cuts)


def test_text_is_held_back_only_while_a_stop_string_may_begin_in_it() -> None:
    stream = StopStrings(["END"])
    assert [stream.push(piece) for piece in ("aE", "N", "x", "E", "ND", "y")] == ["a", "", "ENx", "", "", ""]
    assert stream.found and stream.end() == ""
    with pytest.raises(ValueError, match="a stop string is empty"):
        StopStrings(["a", ""])


class Letters:
    """A codec whose tokens are bytes; token 10 ends a document."""

    stop = 10

    def stream(self, prompt: list[int]) -> ByteStream:
        return ByteStream()


def test_rows_end_for_their_own_reasons_and_equal_rows_alone() -> None:
    m, sleep = toy.model(), Sleep(window=4, passes=2, loop=Loop(trigger="every"))
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 1], [2, 2]]
    sampling = [Sampling(temperature=1.5, seed=i) for i in range(4)]

    def write(rows: list[int], stops: list[str]) -> list[tuple[list[int], str, str | None]]:
        session = SleepSession(m, sleep, batch=len(rows))
        session.prefill(*padded([prompts[i] for i in rows], torch.device("cpu")))
        found = [Continuation(Letters(), prompts[i], 12 + i, sampling[i], stops) for i in rows]
        texts = [""] * len(rows)
        while any(row.finish is None for row in found):
            texts = [a + b for a, b in zip(texts, write_token(session, found), strict=True)]
        for row, i, length in zip(found, rows, session.lengths.tolist(), strict=True):
            assert length == len(prompts[i]) + len(row.tokens), "everything but the end of the document was read"
        return [(row.tokens, text, row.finish) for row, text in zip(found, texts, strict=True)]

    for stops in ([], ["\x03", "\x01\x01"]):
        together = write([0, 1, 2, 3], stops)
        assert together == [write([i], stops)[0] for i in range(4)]
        for i, (tokens, text, finish) in enumerate(together):
            whole = "".join(map(chr, tokens))
            assert text == expected(whole, stops)[0]
            assert finish == ("length" if len(tokens) == 12 + i and not expected(whole, stops)[1] else "stop")
    assert {finish for _, _, finish in write([0, 1, 2, 3], [])} == {"stop", "length"}
