"""Streaks of non-finite steps: the run goes back and leaves out their data, then goes on as one that never read it."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch

from sleeptrain.data.draws import Spans
from sleeptrain.errors import RunFailed
from sleeptrain.train.guard import Guard
from tests.distributed import run
from tests.train.jobs import text_data, trained

COMMON = [
    "sleep.window=16", "sleep.loop.trigger=every", "train.batch=8", "train.steps=12", "optim.schedule.name=constant",
    "checkpoint.every=3",
]  # fmt: skip
BAD = [((40, 48),), ((48, 56),), ((56, 64),)]
"""What steps 6 to 8 read: eight rows each of one source."""


def poisoned(spans: Collection[Spans], rank: int) -> Any:
    """Gradients of one rank are NaN in the steps that read this data."""

    def spoil(setup: Any) -> None:
        reader, now = setup.reader, {"bad": False}
        read = reader.next_step

        def next_step() -> Any:
            batches = read()
            now["bad"] = reader.last_read in spans
            return batches

        reader.next_step = next_step
        if setup.process.rank == rank:
            weight = next(p for name, p in setup.engine.module.named_parameters() if name.endswith("mlp.up.weight"))
            weight.register_hook(lambda gradient: gradient * math.nan if now["bad"] else gradient)

    return spoil


def with_bad_data(folder: str) -> tuple[list[Any], list[Any], list[Any]]:
    """Rows of a run on bad data, of one that never reads it, and what the first leaves out."""
    where, left = Path(folder), []

    def spoil(setup: Any) -> None:
        poisoned(BAD, setup.process.world - 1)(setup)
        left.append(setup.reader)

    bad, _ = trained(where, "bad", where / "text", COMMON, spoil=spoil)

    def leave_out(setup: Any) -> None:
        setup.reader.leave_out(BAD)

    good, _ = trained(where, "good", where / "text", COMMON, spoil=leave_out)
    return bad, good, left[0].left_out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tmp_path_factory.mktemp("guard")
    text_data(made)
    return str(made)


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_goes_back_and_leaves_out_the_data_of_a_streak(folder: str, world: int, tmp_path: Path) -> None:
    (tmp_path / "text").symlink_to(Path(folder) / "text")
    bad, good, left = run(with_bad_data, world, str(tmp_path), timeout=300)[0]
    assert [row["step"] for row in bad] == list(range(1, 13)) and not any(row["skipped"] for row in bad)
    for key in ("loss", "grad_norm", "targets"):
        assert [row[key] for row in bad] == [row[key] for row in good]
    assert left == BAD


def always_bad(folder: str, name: str, more: list[str]) -> str:
    """The message of a run whose data is bad from the sixth step on."""
    where = Path(folder)
    everything = [((first, first + 8),) for first in range(40, 9000, 8)]
    with pytest.raises(RunFailed) as caught:
        trained(where, name, where / "text", [*COMMON, *more], spoil=poisoned(everything, 0))
    return str(caught.value)


def test_a_run_goes_back_a_limited_number_of_times(folder: str) -> None:
    message = run(always_bad, 1, folder, "often", ["train.guard.rollbacks=2", "train.steps=30"])[0]
    assert "3 times in a row, after going back 2 times (train.guard.rollbacks)" in message
    message = run(always_bad, 1, folder, "never", ["checkpoint.every=0"])[0]
    assert "3 times in a row, and there is no checkpoint to go back to" in message


def stopped_in_a_streak(folder: str) -> list[Any]:
    """Two of three bad steps, a stop, and the third."""
    where = Path(folder)
    trained(where, "stopped", where / "text", [*COMMON, "train.steps=7"], spoil=poisoned(BAD, 0))
    streaks: list[Any] = []

    def spoil(setup: Any) -> None:
        streaks.append(list(setup.guard.streak))
        poisoned(BAD, 0)(setup)

    rows, _ = trained(where, "stopped", where / "text", COMMON, spoil=spoil)
    return [streaks[0], [row["step"] for row in rows], any(row["skipped"] for row in rows)]


def test_a_streak_goes_on_after_a_stop(folder: str) -> None:
    """The run saves in the streak when it stops, and at no other time: it would go back to that checkpoint."""
    streak, steps, skipped = run(stopped_in_a_streak, 1, folder)[0]
    assert streak == BAD[:2] and steps == list(range(1, 13))
    assert skipped, "the checkpoint of the stop holds the first two steps of the streak"


def test_a_finite_step_ends_a_streak() -> None:
    guard = Guard(limit=2, rollbacks_left=1)
    assert [guard.observe(norm, ((at, at + 1),)) for at, norm in enumerate([None, 1.0, None, None])] == [
        False, False, False, True,
    ]  # fmt: skip
    assert guard.streak == [((2, 3),), ((3, 4),)]
    other = Guard(limit=2, rollbacks_left=1)
    other.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    assert other.streak == guard.streak


def test_the_limit_of_the_norm_follows_the_median() -> None:
    """None before there are enough steps; steps that are not finite do not count; state is kept."""
    guard = Guard(limit=3, rollbacks_left=1, spike=10.0)
    for at in range(19):
        guard.observe(1.0 + at % 2, ((at, at + 1),))
    guard.observe(None, ((19, 20),))
    assert guard.max_norm == math.inf
    guard.observe(500.0, ((20, 21),))
    assert guard.max_norm == 15.0, "ten norms of 1, nine of 2 and one of 500"
    other = Guard(limit=3, rollbacks_left=1, spike=10.0)
    other.load_state_dict(guard.state_dict())
    assert other.max_norm == guard.max_norm
    for at in range(200):
        guard.observe(500.0, ((at, at + 1),))
    assert guard.max_norm == 5000.0 and len(guard.norms) == 100
    assert Guard(limit=3, rollbacks_left=1).max_norm == math.inf


def with_a_spike(folder: str, spike: str) -> tuple[list[dict[str, Any]], Any]:
    """A run whose gradients are a thousand times as large in step 24."""
    where = Path(folder)

    def spoil(setup: Any) -> None:
        reader, now = setup.reader, {"step": 0}
        read = reader.next_step

        def next_step() -> Any:
            now["step"] += 1
            return read()

        reader.next_step = next_step
        for weight in setup.engine.module.parameters():
            weight.register_hook(lambda gradient: gradient * (1000.0 if now["step"] == 24 else 1.0))

    words = [*COMMON, "train.steps=26", "checkpoint.every=0", f"train.guard.spike={spike}"]
    return trained(where, f"spike-{spike}", where / "text", words, spoil=spoil)


@pytest.mark.slow
def test_a_finite_spike_is_skipped_where_it_is_asked_for(folder: str, capfd: pytest.CaptureFixture[str]) -> None:
    (rows, weights), (applied, others) = (run(with_a_spike, 1, folder, spike)[0] for spike in ("20", "null"))
    assert [row["step"] for row in rows if row["skipped"]] == [24] and not any(row["skipped"] for row in applied)
    assert rows[23]["grad_norm"] == applied[23]["grad_norm"] > 100 * rows[22]["grad_norm"]
    assert [row["loss"] for row in rows[:24]] == [row["loss"] for row in applied[:24]]
    assert not all(torch.equal(weights[name], others[name]) for name in weights)
