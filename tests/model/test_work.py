"""The work of rows against a count token by token, key by key."""

import itertools

import pytest
import torch

from sleeptrain.model.work import work_of_full_row, work_of_rows
from sleeptrain.program import Evict, Sleep, Window, compile

WINDOWS = [Window(start, start + 6, True) for start in range(0, 24, 6)]


def keys_of(query: int, window: Window, documents: list[int], sliding: bool, reach: int) -> int:
    """Real keys that a real query attends to: of its document, not after it, within reach, in its window or the cache before it."""
    oldest = max(0, window.start - (5 if sliding else 0))
    return sum(
        documents[key] == documents[query] and query - key < reach for key in range(oldest, query + 1)
    )  # padding belongs to document -1


@pytest.mark.parametrize(("sliding", "reach"), itertools.product([False, True], [None, 4]))
def test_work_is_that_of_a_count_key_by_key(sliding: bool, reach: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    starts = torch.rand(20, 24, generator=generator) < 0.15
    starts[:, 0] = True
    valid = torch.arange(24) < torch.randint(1, 25, (20, 1), generator=generator)
    starts &= valid
    sleep = Sleep(window=6, passes=2, evict=Evict(mode="sliding" if sliding else "hard"))
    found = work_of_rows(valid, starts, WINDOWS, sleep, (reach, 3))
    expected = torch.zeros(4, 2, 3, dtype=torch.float64)
    for row_starts, row_valid in zip(starts.cumsum(1).tolist(), valid.tolist(), strict=True):
        documents = [d if real else -1 for d, real in zip(row_starts, row_valid, strict=True)]
        for number, window in enumerate(WINDOWS):
            for query in range(window.start, window.stop):
                if documents[query] < 0:
                    continue
                pairs = [keys_of(query, window, documents, sliding, each) for each in (reach or 6, 3)]
                unit = torch.tensor([1.0, *pairs])
                expected[number, 0] += unit
                # the last document of the window is the one that may go on in the next window
                if row_starts[query] == row_starts[window.stop - 1]:
                    expected[number, 1] += unit
    assert torch.equal(found, expected)


@pytest.mark.parametrize("mode", ["hard", "sliding"])
def test_a_full_row_of_one_document_has_the_work_of_the_program(mode: str) -> None:
    sleep = Sleep(window=6, passes=3, evict=Evict(mode=mode))
    windows = [Window(w.start, w.stop, False) for w in WINDOWS]
    found = work_of_rows(torch.ones(2, 24, dtype=torch.bool), None, windows, sleep, (5, 2))
    assert torch.equal(found, 2 * work_of_full_row(compile(sleep, windows, 4), (5, 2)))
