"""Attention scores that a mask excludes: counted in a mask and by hand, and as docs/distributed.md says them."""

import json
from pathlib import Path

import pytest

from benchmarks import mask_share

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("cached", "masked", "expected"),
    [
        (0, False, (10, 10)),  # without a mask the causal half alone
        (0, True, (16, 10)),
        (3, False, (28, 16)),  # a window of 4 behind 3 tokens: every query sees 4 keys of 7
        (2, False, (24, 15)),  # the first query sees 3
    ],
)
def test_pairs_of_a_window_of_four_tokens(cached, masked, expected):
    assert mask_share.pairs(4, cached, 4, masked) == expected


def test_the_page_says_the_shares():
    found = json.loads((ROOT / "benchmarks/results/mask_share.json").read_text())["cases"]
    assert found == {name: mask_share.share(*case) for name, case in mask_share.CASES.items()}
    # By hand: a window's 2,048 queries behind 2,047 tokens see 2,048 keys each of 4,095; all but the first window of 8 have these.
    passes = 2 * 6  # and the last window has one
    of_pair = 3 * 6 * 4 * 16 * 128  # forward and backward, six blocks of attention
    by_hand = (passes + 1) * of_pair * 2048 * (4095 - 2048) / 1e12
    assert found["sliding eviction"]["excluded TFLOPs"] == pytest.approx(by_hand, rel=1e-3)
    text = (ROOT / "docs/distributed.md").read_text()
    for name in ("sliding eviction", "hard eviction, rows of several documents"):
        assert f"{100 * found[name]['share of forward and backward']:.1f} %" in text
