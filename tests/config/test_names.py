"""Which name was probably meant."""

from __future__ import annotations

import re
from typing import Any

import pytest

M = "model: {width: 8}\n"


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("train.sed=1", "train.seed"), ("train.lr=1", "optim.lr"), ("optm.lr=1", "optim"), ("sleep.loop.feedbak=raw", "sleep.loop.feedback"),
        ("lr=1", "extra.lr or optim.lr"), ("wimdow=3", "sleep.window"), ("slep.loop.layers=all", "sleep"), ("rundir=x", "run_dir"),
        ("feedback=raw", "sleep.loop.feedback"), ("data.sources.0.pth=x", "data.sources.0.path"),
    ],
)  # fmt: skip
def test_nearest(errors: Any, override: str, meant: str) -> None:
    key = re.match(r"(slep|optm|[^=]*)", override)[0]  # a section that does not exist is reported as a whole
    (error,) = errors(M, override)
    assert error.startswith(f"{key} = ")
    options = set(error.rpartition("did you mean ")[2].removesuffix("?").split(" or "))
    assert options == set(meant.split(" or ")) or (key == "train.lr" and meant in options)


def test_no_guess_where_nothing_is_near(errors: Any) -> None:
    assert errors(M, "zzzz.qqqq=1") == ["zzzz = {qqqq: 1} (command line): unknown key"]


def test_an_unknown_section_of_a_file_is_told_once(errors: Any) -> None:
    assert errors(M + "optimizer:\n  lr: 1\n  betas: [1, 2]\n") == [
        "optimizer = {lr: 1, betas: [1, 2]} (a.yaml:2): unknown key; did you mean optim?"
    ]
